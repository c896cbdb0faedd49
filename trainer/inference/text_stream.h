// The text of one answer while its tokens come: whole characters, and nothing of a stop string.
#pragma once
#include <string>
#include <vector>

#include "tokenizer/stream_decoder.h"

namespace uniattn {

class TextStream {
 public:
  // `tokenizer` must outlive this. Stop strings are not empty.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings)
      : decoder_(tokenizer), stop_strings_(std::move(stop_strings)) {}

  // What may be shown now that `id` has come: text that could still become a stop string is held back.
  std::string push(int32_t id) { return release(decoder_.push(id)); }
  // What was held back, at the end of the answer.
  std::string finish();
  // Whether a stop string has come; nothing is shown from it on.
  bool stopped() const { return stopped_; }

 private:
  std::string release(const std::string& text);

  StreamDecoder decoder_;
  std::vector<std::string> stop_strings_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace uniattn
