// A SentencePiece model through its own library.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "tokenizer/settings.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// `path`: the model's file, for messages. Throws Error naming it when `model` is not a SentencePiece model, has more
// pieces than `settings.vocab_size`, bos/eos are out of range, or an added token that is not special is no piece of it.
std::unique_ptr<Tokenizer> load_sentencepiece(std::string_view model, const TokenizerSettings& settings,
                                              const std::string& path);

}  // namespace uniattn
