// A tokenizer that was accepted must work: any text either comes back as it was or is refused.
#pragma once
#include <cstdlib>

#include "tokenizer/bpe_tokenizer.h"

namespace uniattn {

inline constexpr std::string_view kTexts[] = {"", "Hello, hello! don't", "  12345\r\n\n a", "é😀日本 \xC2\xA0x"};

inline void round_trip(BpeDefinition definition) {
  const auto tokenizer = make_bpe_tokenizer(std::move(definition), {}, "fuzz");
  for (const std::string_view text : kTexts) {
    if (tokenizer->decode(tokenizer->encode(text)) != text) std::abort();
  }
}

}  // namespace uniattn
