// Text of tokens that come one by one.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace uniattn {

class StreamDecoder {
 public:
  // `tokenizer` must outlive this.
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that `id` adds, always valid UTF-8: nothing as long as it ends inside a character. All that was returned,
  // with finish() at the end, is what Tokenizer::decode gives for all ids at once.
  std::string push(int32_t id);

  // What was held back, with U+FFFD for a character that never became whole.
  std::string finish();

 private:
  std::string take_text();

  const Tokenizer& tokenizer_;
  std::vector<int32_t>
      ids_;              // the last ones whose text was returned, for the spaces between words, and those held back
  size_t returned_ = 0;  // of ids_
};

}  // namespace uniattn
