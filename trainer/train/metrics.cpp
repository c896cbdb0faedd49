#include "train/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "storage/atomic_file.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

constexpr auto kLineEvery = std::chrono::seconds(10);
constexpr int kBarWidth = 24;

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  return total >= 3600 ? fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60)
                       : fmt::format("{}:{:02}", total / 60, total % 60);
}

// An exponential average that starts at the first value.
void smooth(double& average, double value) {
  average = average == 0 ? value : 0.9 * average + 0.1 * value;
}

}  // namespace

void trim_metrics(const std::string& path, int64_t lines) {
  std::ifstream in(path);
  std::string kept, line;
  while (lines-- > 0 && std::getline(in, line)) kept += line + "\n";
  write_file_atomically(path, kept);
}

void append_metrics(const std::string& path, const StepMetrics& m) {
  const nlohmann::ordered_json line{{"stage", m.stage},
                                    {"step", m.step},
                                    {"loss", m.loss},
                                    {"learning_rate", m.learning_rate},
                                    {"grad_norm", m.gradient_norm},
                                    {"tokens", m.tokens},
                                    {"supervised_tokens", m.supervised_tokens},
                                    {"seconds", m.seconds},
                                    {"tokens_per_s", static_cast<double>(m.tokens) / m.seconds}};
  std::ofstream out(path, std::ios::app);
  out << line.dump() << "\n" << std::flush;
  if (!out) fail("cannot append to `{}`: is the disk full?", path);
}

void Progress::show(const StepMetrics& m) {
  smooth(tokens_per_second_, static_cast<double>(m.tokens) / m.seconds);
  smooth(seconds_per_step_, m.seconds);
  const std::string left = duration(static_cast<double>(m.total_steps - m.step) * seconds_per_step_);
  const std::string text =
      fmt::format("{} {}/{}  loss {:.4f}  lr {:.2e}  |g| {:.3f}  {:.0f} tokens/s  {} left", m.stage, m.step,
                  m.total_steps, m.loss, m.learning_rate, m.gradient_norm, tokens_per_second_, left);
  const auto now = Clock::now();
  if (isatty(STDERR_FILENO)) {
    const auto filled = static_cast<int>(kBarWidth * m.step / m.total_steps);
    fmt::print(stderr, "\r\033[K[{:=<{}}{: <{}}] {}", "", filled, "", kBarWidth - filled, text);
    std::fflush(stderr);
    bar_open_ = true;
  } else if (m.step == 1 || m.step == m.total_steps || now - last_line_ >= kLineEvery) {
    log::info(text);
    last_line_ = now;
  }
}

void Progress::finish() {
  if (bar_open_) std::fputc('\n', stderr);
  bar_open_ = false;
}

}  // namespace uniattn
