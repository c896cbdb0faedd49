// What a record of each format looks like as text.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/prepare.h"

namespace uniattn {

// Spans of one record; EOS belongs after each supervised one. `format`: alpaca | messages | text.
// Throws Error that says which field was expected and what was found (not where: the caller knows file and line).
std::vector<Span> render(const std::string& format, const nlohmann::json& record);

// The prompt that is made of an instruction and an input, one of which may be empty.
std::string alpaca_prompt(const std::string& instruction, const std::string& input);

}  // namespace uniattn
