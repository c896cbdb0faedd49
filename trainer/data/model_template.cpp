#include "data/model_template.h"

#include <fmt/ranges.h>

#include <filesystem>

#include "data/jinja_template.h"
#include "data/templates.h"
#include "storage/json.h"
#include "storage/mapped_file.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct TemplateText {
  std::string path, text;
};

// A string, or a list of {name, template} of which one is named "default".
std::string template_text(const json& value, const std::string& path) {
  if (value.is_string()) return value;
  for (const json& item : value.is_array() ? value : json::array()) {
    if (item.is_object() && item.value("name", json()) == "default" && item.value("template", json()).is_string())
      return item["template"];
  }
  fail("{}: \"chat_template\": expected a string, or a list with a template named \"default\"", path);
}

std::optional<TemplateText> read_template(const fs::path& directory) {
  const fs::path jinja = directory / "chat_template.jinja", config = directory / "tokenizer_config.json";
  if (fs::exists(jinja)) return TemplateText{jinja.string(), std::string(MappedFile(jinja.string()).bytes())};
  if (!fs::exists(config)) return std::nullopt;
  const json settings = read_json(config.string());
  if (!settings.is_object() || !settings.contains("chat_template") || settings["chat_template"].is_null())
    return std::nullopt;
  return TemplateText{config.string(), template_text(settings["chat_template"], config.string())};
}

// The template that a text is: word for word one of ours, or told by the tokens and phrases it writes.
std::optional<std::string> name_of(const std::string& text) {
  for (const std::string& name : template_names())
    if (text == jinja_template(name)) return name;
  const auto has = [&](std::string_view phrase) { return text.find(phrase) != std::string::npos; };
  if (has("<|start_header_id|>")) return has("Cutting Knowledge Date") ? "llama3.1" : "llama3";
  if (has("<start_of_turn>")) return "gemma";
  if (has("<|im_start|>")) return "chatml";
  if (has("<<SYS>>")) return "llama2";
  // Of Mistral's, the later one has no space before [/INST], which is a token there.
  if (has("[INST]")) return has(" [/INST]") ? "mistral" : "mistral-v0.3";
  if (has("<|assistant|>\\n")) return "tulu";
  if (has("### Instruction:")) return "alpaca";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> template_of_model(const std::string& model_directory) {
  const auto source = read_template(model_directory);
  if (!source) return std::nullopt;
  if (const auto name = name_of(source->text)) return name;
  fail("{}: a chat template that is none of {}: name the one to use", source->path, fmt::join(template_names(), ", "));
}

bool has_template(const std::string& model_directory, const std::string& name) {
  const auto source = read_template(model_directory);
  return source && name_of(source->text) == name;
}

}  // namespace uniattn
