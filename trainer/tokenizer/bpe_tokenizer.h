// Byte-level byte-pair encoding: Llama-3 and its kin.
#pragma once
#include <memory>
#include <string>

#include "tokenizer/bpe_definition.h"
#include "tokenizer/settings.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// `path`: the definition's file, for messages. Throws Error naming it when the pattern cannot be used, ids exceed
// `settings.vocab_size`, or bos/eos name no token.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeDefinition definition, const TokenizerSettings& settings,
                                              const std::string& path);

}  // namespace uniattn
