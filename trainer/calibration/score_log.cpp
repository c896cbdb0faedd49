#include "calibration/score_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

void append_line(const std::string& path, const std::string& line) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  const bool written =
      fd >= 0 && ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()) && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!written) fail("cannot write '{}': {}", path, std::strerror(error));
}

}  // namespace

ScoreLog::ScoreLog(std::string path, std::string fingerprint, bool writes)
    : path_(std::move(path)), fingerprint_(std::move(fingerprint)), writes_(writes) {
  if (std::filesystem::exists(path_)) read();
}

void ScoreLog::read() {
  std::ifstream in(path_, std::ios::binary);
  std::stringstream buffer;
  buffer << in.rdbuf();
  if (!in) fail("cannot read '{}'", path_);
  const std::string text = buffer.str();
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string where = fmt::format("{}:{}", path_, number);
    const json line = parse_json(std::string_view(text).substr(begin, end - begin), where);
    try {
      if (line.at("fingerprint") == fingerprint_) scores_[line.at("name")] = line.at("score").get<double>();
    } catch (const json::exception&) {
      fail("{}: expected an object with fingerprint, name and score; remove the file to search anew", where);
    }
    begin = end + 1;
  }
  if (writes_ && begin < text.size()) std::filesystem::resize_file(path_, begin);
}

std::optional<double> ScoreLog::find(const std::string& name) const {
  const auto found = scores_.find(name);
  return found == scores_.end() ? std::nullopt : std::optional(found->second);
}

void ScoreLog::add(const std::string& name, double score) {
  scores_[name] = score;
  if (writes_) append_line(path_, json{{"fingerprint", fingerprint_}, {"name", name}, {"score", score}}.dump() + "\n");
}

}  // namespace uniattn
