// The chat template that a model directory brings.
#pragma once
#include <optional>
#include <string>

namespace uniattn {

// The name of the template (data/templates.h) that the directory's own chat_template.jinja, or chat_template of
// tokenizer_config.json, is, told by the tokens and phrases it writes; nullopt when the directory has none, as base
// models do. Throws Error for a template that is none of the known ones.
std::optional<std::string> template_of_model(const std::string& model_directory);

// Whether that is the template `name`.
bool has_template(const std::string& model_directory, const std::string& name);

}  // namespace uniattn
