#include "tokenizer/piece_boundaries.h"

#include "tokenizer/sentencepiece_proto.h"

namespace uniattn {

bool encodes_parts_independently(const SentencePieceTraits& traits) {
  return traits.bpe && traits.byte_fallback && !traits.space_as_suffix && !traits.maps_characters &&
         !traits.remove_extra_spaces && traits.escape_spaces;
}

PieceBoundaries::Character PieceBoundaries::first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  if (text.starts_with("\u2581")) return {' ', 3};
  return {kClasses - 1, lead < 0xE0 ? 2u : lead < 0xF0 ? 3u : 4u};
}

PieceBoundaries::PieceBoundaries(const std::vector<std::string>& pieces) {
  for (std::string_view piece : pieces) {
    for (size_t left = kClasses; !piece.empty();) {
      const auto [kind, bytes] = first_character(piece);
      if (left < kClasses) neighbours_[left].set(kind);
      left = kind;
      piece.remove_prefix(std::min(bytes, piece.size()));
    }
  }
}

void PieceBoundaries::split(std::string_view text, const std::function<void(std::string_view)>& part) const {
  size_t begin = 0;
  size_t left = kClasses;
  for (size_t at = 0; at < text.size();) {
    const auto [kind, bytes] = first_character(text.substr(at));
    if (left < kClasses && !neighbours_[left].test(kind)) {
      part(text.substr(begin, at - begin));
      begin = at;
    }
    left = kind;
    at += bytes;
  }
  if (begin < text.size()) part(text.substr(begin));
}

}  // namespace uniattn
