// What a model directory says about its tokenizer beside the tokenizer's own file.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/added_tokens.h"

namespace uniattn {

struct TokenizerSettings {
  // config.json
  std::optional<int32_t> bos, eos;  // of several eos ids the first
  std::optional<int64_t> vocab_size;
  // tokenizer_config.json
  std::string bos_token, eos_token;  // their spelling; "" where it does not say
  std::vector<AddedToken> added;
  bool add_prefix_space = true;
};

// Absent files and keys leave the defaults. Throws Error naming file and key.
TokenizerSettings read_tokenizer_settings(const std::string& model_directory);

}  // namespace uniattn
