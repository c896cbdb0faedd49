#include "data/whitespace.h"

#include <algorithm>
#include <array>

namespace uniattn {
namespace {

using namespace std::string_view_literals;

// UTF-8 of U+0009 to U+000D, U+001C to U+0020, U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F
// and U+3000.
constexpr std::array kSpaces = {
    "\t"sv,           "\n"sv,           "\v"sv,           "\f"sv,           "\r"sv,
    "\x1c"sv,         "\x1d"sv,         "\x1e"sv,         "\x1f"sv,         " "sv,
    "\xc2\x85"sv,     "\xc2\xa0"sv,     "\xe1\x9a\x80"sv, "\xe2\x80\x80"sv, "\xe2\x80\x81"sv,
    "\xe2\x80\x82"sv, "\xe2\x80\x83"sv, "\xe2\x80\x84"sv, "\xe2\x80\x85"sv, "\xe2\x80\x86"sv,
    "\xe2\x80\x87"sv, "\xe2\x80\x88"sv, "\xe2\x80\x89"sv, "\xe2\x80\x8a"sv, "\xe2\x80\xa8"sv,
    "\xe2\x80\xa9"sv, "\xe2\x80\xaf"sv, "\xe2\x81\x9f"sv, "\xe3\x80\x80"sv};

}  // namespace

std::string_view strip(std::string_view text) {
  const auto* space = kSpaces.begin();
  const auto starts = [&](std::string_view candidate) { return text.starts_with(candidate); };
  const auto ends = [&](std::string_view candidate) { return text.ends_with(candidate); };
  while ((space = std::ranges::find_if(kSpaces, starts)) != kSpaces.end()) text.remove_prefix(space->size());
  while ((space = std::ranges::find_if(kSpaces, ends)) != kSpaces.end()) text.remove_suffix(space->size());
  return text;
}

}  // namespace uniattn
