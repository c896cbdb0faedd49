#include "tokenizer/settings.h"

#include <charconv>
#include <filesystem>

#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The object in a file; empty when there is no file.
json read_object(const fs::path& path) {
  if (!fs::exists(path)) return json::object();
  json value = read_json(path.string());
  if (!value.is_object()) fail("{}: expected a JSON object", path.string());
  return value;
}

// An id, or the first of a list of them; null and an absent key are the same.
std::optional<int64_t> read_id(const json& config, const char* key, const std::string& path) {
  auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  const json& value = found->is_array() && !found->empty() ? found->front() : *found;
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
    fail("{}: expected an id as \"{}\", got {}", path, key, found->dump());
  }
  return value.get<int64_t>();
}

// A token's spelling, given as a string or as an object with "content"; "" for null and an absent key.
std::string read_spelling(const json& config, const char* key, const std::string& path) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return "";
  const json& value = found->is_object() && found->contains("content") ? (*found)["content"] : *found;
  if (!value.is_string()) fail("{}: expected a token as \"{}\", got {}", path, key, found->dump());
  return value;
}

// added_tokens_decoder: an object of ids and tokens.
std::vector<AddedToken> read_decoder(const json& entries, const std::string& path) {
  if (!entries.is_object()) fail("{}: \"added_tokens_decoder\": expected an object", path);
  std::vector<AddedToken> added;
  for (const auto& [key, entry] : entries.items()) {
    const std::string where = fmt::format("{}: added_tokens_decoder[\"{}\"]", path, key);
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) fail("{}: expected an id as the key", where);
    added.push_back(read_added_token(entry, id, where));
  }
  return added;
}

// additional_special_tokens: spellings alone, the whole of what older directories say.
void add_special_spellings(const json& list, const std::string& path, std::vector<AddedToken>& added) {
  if (!list.is_array()) fail("{}: \"additional_special_tokens\": expected a list", path);
  for (const json& item : list) {
    const std::string spelling = read_spelling({{"token", item}}, "token", path);
    if (!spelling.empty()) added.push_back({.content = spelling, .special = true});
  }
}

}  // namespace

TokenizerSettings read_tokenizer_settings(const std::string& model_directory) {
  const fs::path directory = model_directory;
  const std::string config_path = (directory / "config.json").string();
  const std::string tokenizer_path = (directory / "tokenizer_config.json").string();
  const json config = read_object(config_path), tokenizer = read_object(tokenizer_path);
  TokenizerSettings settings;
  settings.bos = read_id(config, "bos_token_id", config_path);
  settings.eos = read_id(config, "eos_token_id", config_path);
  settings.vocab_size = read_id(config, "vocab_size", config_path);
  settings.bos_token = read_spelling(tokenizer, "bos_token", tokenizer_path);
  settings.eos_token = read_spelling(tokenizer, "eos_token", tokenizer_path);
  if (tokenizer.contains("added_tokens_decoder")) {
    settings.added = read_decoder(tokenizer["added_tokens_decoder"], tokenizer_path);
  }
  if (tokenizer.contains("additional_special_tokens") && !tokenizer["additional_special_tokens"].is_null()) {
    add_special_spellings(tokenizer["additional_special_tokens"], tokenizer_path, settings.added);
  }
  settings.add_prefix_space = tokenizer.value("add_prefix_space", json()) != false;
  return settings;
}

}  // namespace uniattn
