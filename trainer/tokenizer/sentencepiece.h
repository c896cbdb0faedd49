// A SentencePiece model through its own library.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "tokenizer/tokenizer.h"

namespace uniattn {

// What a model's config.json says about ids; absent ones come from the SentencePiece model.
struct TokenIds {
  std::optional<int32_t> bos, eos;
  std::optional<int64_t> vocab_size;
};

// Throws Error naming `path` when it is not a SentencePiece model, has more pieces than `ids.vocab_size`, or bos/eos
// are out of range.
std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& path, const TokenIds& ids);

}  // namespace uniattn
