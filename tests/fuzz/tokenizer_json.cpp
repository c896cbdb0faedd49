#include "fuzz.h"
#include "round_trip.h"
#include "tokenizer/byte_fallback.h"

namespace uniattn {
namespace {

// As SentencePiece does, decoding takes off the space that encoding may have put in front.
void check_byte_fallback(std::string_view bytes) {
  const auto tokenizer = make_byte_fallback_tokenizer(parse_byte_fallback(bytes, "fuzz"), {}, "fuzz");
  for (std::string_view text : kTexts) {
    std::string decoded = tokenizer->decode(tokenizer->encode(text));
    if (decoded.size() < text.size() && text.starts_with(' ')) decoded.insert(0, 1, ' ');
    if (decoded != text) std::abort();
  }
}

}  // namespace
}  // namespace uniattn

UNIATTN_FUZZ([](std::string_view bytes) {
  if (uniattn::has_byte_fallback(bytes, "fuzz")) return uniattn::check_byte_fallback(bytes);
  uniattn::round_trip(uniattn::parse_tokenizer_json(bytes, "fuzz"));
})
