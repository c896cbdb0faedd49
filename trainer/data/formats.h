// What a record of a data set says, as the pieces of a document.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/templates.h"

namespace uniattn {

// The template of a format when the configuration names none: alpaca for alpaca and tulu_single_round, tulu for
// messages, plain for text; "" for ids, which has none.
std::string default_template(const std::string& format);

// Pieces of one record; what follows the last answer is left out, as it teaches nothing. nullopt: the format's filter
// leaves the record out (tulu_single_round). `format`: alpaca | messages | tulu_single_round | text (docs/data.md).
// Throws Error that says which field was expected and what was found (not where: the caller knows file and line), or
// why the template cannot express it.
std::optional<std::vector<Piece>> render_record(const std::string& format, const std::string& template_name,
                                                const nlohmann::json& record);

}  // namespace uniattn
