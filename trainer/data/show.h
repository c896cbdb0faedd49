// A document for human eyes: which tokens are prompt and which are learnt.
#pragma once
#include <string>

#include "data/shards.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// The decoded text with special tokens spelled out. What carries loss is green and the rest dim or, without colour,
// between [[ and ]].
std::string render_sample(const Document& document, const Tokenizer& tokenizer, bool colour);

}  // namespace uniattn
