// The alphabet in which byte-level tokenizers write bytes as printable characters: a space is "Ġ", a line break "Ċ".
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace uniattn {

// The bytes that `symbols` (UTF-8) stands for; nullopt when one of its characters is not of the alphabet.
std::optional<std::string> bytes_of_symbols(std::string_view symbols);

}  // namespace uniattn
