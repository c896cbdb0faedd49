#include "tokenizer/tokenizer.h"

#include <filesystem>

#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/sentencepiece.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;

// An id, or the first of a list of them; null and an absent key are the same.
std::optional<int64_t> read_id(const nlohmann::json& config, const char* key, const std::string& path) {
  auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  const nlohmann::json& value = found->is_array() && !found->empty() ? found->front() : *found;
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
    fail("{}: expected an id as \"{}\", got {}", path, key, found->dump());
  }
  return value.get<int64_t>();
}

TokenIds read_token_ids(const fs::path& config_path) {
  if (!fs::exists(config_path)) return {};
  const nlohmann::json config = read_json(config_path.string());
  if (!config.is_object()) fail("{}: expected a JSON object", config_path.string());
  return {.bos = read_id(config, "bos_token_id", config_path.string()),
          .eos = read_id(config, "eos_token_id", config_path.string()),
          .vocab_size = read_id(config, "vocab_size", config_path.string())};
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model_directory) {
  const fs::path directory = model_directory;
  const fs::path sentencepiece = directory / "tokenizer.model";
  if (!fs::is_directory(directory)) fail("no model directory '{}'", model_directory);
  if (!fs::exists(sentencepiece)) {
    if (fs::exists(directory / "tokenizer.json")) {
      fail("'{}' has only a tokenizer.json: expected tokenizer.model, SentencePiece is what can be read so far",
           model_directory);
    }
    fail("no tokenizer in '{}': expected tokenizer.model (SentencePiece)", model_directory);
  }
  return load_sentencepiece(sentencepiece.string(), read_token_ids(directory / "config.json"));
}

}  // namespace uniattn
