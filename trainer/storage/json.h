// JSON as this project reads it: strict, and without repeated keys, of which parsers silently keep one.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace uniattn {

// Throws Error "WHERE: what is wrong, and at which byte of `text`"; `where` names the file, and the place in it if
// there is one.
nlohmann::json parse_json(std::string_view text, const std::string& where);

// Reads a whole JSON file. Throws Error naming it.
nlohmann::json read_json(const std::string& path);

}  // namespace uniattn
