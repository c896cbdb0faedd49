#include "tokenizer/stream_decoder.h"

#include <string_view>

namespace uniattn {

// Everything that ids_ mean, less what was returned of it before.
std::string StreamDecoder::take_text() {
  const auto held_back = ids_.begin() + static_cast<std::ptrdiff_t>(returned_);
  const std::string before = tokenizer_.decode({ids_.begin(), held_back});
  std::string text = tokenizer_.decode(ids_).substr(before.size());
  if (!text.empty()) {
    ids_.erase(ids_.begin(), held_back);
    returned_ = ids_.size();
  }
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  ids_.push_back(id);
  // U+FFFD at the end: a character that later ids may complete.
  if (std::string_view(tokenizer_.decode(ids_)).ends_with("\uFFFD")) return "";
  return take_text();
}

std::string StreamDecoder::finish() {
  return take_text();
}

}  // namespace uniattn
