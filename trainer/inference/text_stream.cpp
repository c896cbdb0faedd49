#include "inference/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace uniattn {
namespace {

// How much of the end of `text` is a beginning of `stop`.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length)
    if (text.ends_with(stop.substr(0, length))) return length;
  return 0;
}

}  // namespace

std::string TextStream::release(const std::string& text) {
  if (stopped_) return "";
  held_ += text;
  size_t first = std::string::npos, keep = 0;
  for (const std::string& stop : stop_strings_) {
    first = std::min(first, held_.find(stop));
    keep = std::max(keep, overlap(held_, stop));
  }
  if (first != std::string::npos) {
    stopped_ = true;
    held_.resize(first);
    return std::exchange(held_, {});
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string TextStream::finish() {
  std::string shown = release(decoder_.finish());
  return shown + std::exchange(held_, {});
}

}  // namespace uniattn
