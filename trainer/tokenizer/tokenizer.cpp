#include "tokenizer/tokenizer.h"

#include <filesystem>

#include "storage/mapped_file.h"
#include "support/error.h"
#include "tokenizer/bpe_tokenizer.h"
#include "tokenizer/byte_fallback.h"
#include "tokenizer/sentencepiece.h"

namespace uniattn {

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model_directory) {
  namespace fs = std::filesystem;
  const fs::path directory = model_directory;
  const std::string model = (directory / "tokenizer.model").string(), json = (directory / "tokenizer.json").string();
  if (!fs::is_directory(directory)) fail("no model directory '{}'", model_directory);
  TokenizerSettings settings = read_tokenizer_settings(model_directory);
  // Beside a SentencePiece model, tokenizer.json is a translation of it; beside tiktoken's ranks, it is what says more.
  // Newer versions of transformers say only there which pieces are special.
  if (fs::exists(model)) {
    const MappedFile file(model);
    if (!is_tiktoken(file.bytes())) {
      if (settings.added.empty() && fs::exists(json))
        settings.added = parse_added_tokens(MappedFile(json).bytes(), json);
      return load_sentencepiece(file.bytes(), settings, model);
    }
    if (!fs::exists(json))
      return make_bpe_tokenizer(parse_tiktoken(file.bytes(), settings.added, model), settings, model);
  }
  if (!fs::exists(json)) {
    fail(
        "no tokenizer in '{}': expected tokenizer.model (SentencePiece or tiktoken) or tokenizer.json (BPE of bytes or "
        "with byte fallback)",
        model_directory);
  }
  const MappedFile file(json);
  if (has_byte_fallback(file.bytes(), json))
    return make_byte_fallback_tokenizer(parse_byte_fallback(file.bytes(), json), settings, json);
  return make_bpe_tokenizer(parse_tokenizer_json(file.bytes(), json), settings, json);
}

}  // namespace uniattn
