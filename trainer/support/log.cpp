#include "support/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace uniattn::log {
namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_mt("uniattn");
    made->set_pattern("%^%H:%M:%S %L%$ %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

std::unique_ptr<spdlog::logger>& file_logger() {
  static std::unique_ptr<spdlog::logger> instance;
  return instance;
}

}  // namespace

void info(std::string_view message) {
  logger().info("{}", message);
}
void warn(std::string_view message) {
  logger().warn("{}", message);
}
void error(std::string_view message) {
  logger().error("{}", message);
}

void set_file(const std::string& path) {
  auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
  sink->set_pattern("%Y-%m-%d %H:%M:%S %l %v");
  file_logger() = std::make_unique<spdlog::logger>("file", sink);
  logger().sinks().push_back(std::move(sink));
}

void file_only(std::string_view message) {
  if (!file_logger()) return;
  file_logger()->info("{}", message);
  file_logger()->flush();
}

void only_warnings() {
  logger().set_level(spdlog::level::warn);
}

}  // namespace uniattn::log
