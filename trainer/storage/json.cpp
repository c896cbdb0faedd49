#include "storage/json.h"

#include <set>
#include <vector>

#include "storage/mapped_file.h"
#include "support/error.h"

namespace uniattn {

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> open_objects;
  const auto refuse_repeated_keys = [&](int, Event event, nlohmann::json& value) {
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(value.get<std::string>()).second) {
      fail("{}: the key \"{}\" appears twice in one object", where, value.get<std::string>());
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, refuse_repeated_keys);
  } catch (const nlohmann::json::exception& error) {
    // Drop the library's "[json.exception.parse_error.101] parse error at line 1, column 2: ": byte positions fit any
    // `where`.
    const std::string message = error.what();
    const size_t colon = message.find(": "), bracket = message.find("] ");
    const auto* syntax = dynamic_cast<const nlohmann::json::parse_error*>(&error);
    if (syntax != nullptr && colon != std::string::npos) {
      fail("{}: invalid JSON at byte {}: {}", where, syntax->byte, message.substr(colon + 2));
    }
    fail("{}: invalid JSON: {}", where, bracket == std::string::npos ? message : message.substr(bracket + 2));
  }
}

nlohmann::json read_json(const std::string& path) {
  return parse_json(MappedFile(path).bytes(), path);
}

}  // namespace uniattn
