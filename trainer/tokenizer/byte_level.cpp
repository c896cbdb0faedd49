#include "tokenizer/byte_level.h"

#include <array>
#include <cstdint>

namespace uniattn {
namespace {

constexpr int kCharacters = 0x144;  // all of the alphabet lie below

// Printable Latin-1 bytes are written as themselves, the other 68 as the characters from U+0100 on, in order.
std::array<int16_t, kCharacters> make_alphabet() {
  std::array<int16_t, kCharacters> byte_of{};
  byte_of.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    byte_of[static_cast<size_t>(printable ? byte : next++)] = static_cast<int16_t>(byte);
  }
  return byte_of;
}

}  // namespace

std::optional<std::string> bytes_of_symbols(std::string_view symbols) {
  static const auto alphabet = make_alphabet();
  std::string bytes;
  for (size_t i = 0; i < symbols.size(); ++i) {
    size_t character = static_cast<uint8_t>(symbols[i]);
    if (character >= 0x80) {  // two bytes of UTF-8: more would be a character over U+07FF
      if ((character & 0xE0) != 0xC0 || ++i == symbols.size()) return std::nullopt;
      character = (character & 0x1F) << 6 | (static_cast<uint8_t>(symbols[i]) & 0x3F);
    }
    if (character >= kCharacters || alphabet[character] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet[character]);
  }
  return bytes;
}

}  // namespace uniattn
