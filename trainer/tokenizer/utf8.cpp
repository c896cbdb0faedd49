#include "tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace uniattn {
namespace {

struct Character {
  size_t bytes;  // that belong together: of an invalid character, those that could begin a valid one, at least one
  bool valid;
};

// The character that begins at `text`, which is not empty: table 3-7 of the Unicode standard.
Character first_character(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const size_t expected = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  size_t bytes = 1;
  for (; bytes < expected && bytes < text.size(); ++bytes) {
    const auto byte = static_cast<uint8_t>(text[bytes]);
    if (byte < low || byte > high) break;
    low = 0x80;
    high = 0xBF;
  }
  return {bytes, bytes == expected};
}

bool eight_ascii_at(std::string_view text, size_t at) {
  uint64_t bytes;
  if (text.size() - at < sizeof bytes) return false;
  std::memcpy(&bytes, text.data() + at, sizeof bytes);
  return (bytes & 0x8080808080808080) == 0;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (eight_ascii_at(text, at)) {
      at += 8;
      continue;
    }
    const auto [bytes, valid] = first_character(text.substr(at));
    if (!valid) return at;
    at += bytes;
  }
  return std::nullopt;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string valid_text;
  while (!text.empty()) {
    const auto [bytes, valid] = first_character(text);
    valid_text += valid ? text.substr(0, bytes) : std::string_view("\uFFFD");
    text.remove_prefix(bytes);
  }
  return valid_text;
}

}  // namespace uniattn
