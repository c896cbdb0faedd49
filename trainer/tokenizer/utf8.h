// UTF-8, checked.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace uniattn {

// Byte offset of the first character that is not valid UTF-8 (overlong forms, surrogates and values over U+10FFFF
// included).
std::optional<size_t> find_invalid_utf8(std::string_view text);

// `text` with U+FFFD for each invalid byte or cut character, as Python's errors="replace" does it.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace uniattn
