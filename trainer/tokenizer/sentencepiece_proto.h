// What the SentencePiece library does not let one see or change in a model: read from its protocol buffer.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

namespace uniattn {

// Settings of the model's trainer and normalizer, with the library's defaults.
struct SentencePieceTraits {
  bool bpe = false, byte_fallback = false, space_as_suffix = false;
  bool maps_characters = false, add_dummy_prefix = true, remove_extra_spaces = true, escape_spaces = true;
};

// Throws Error for what is no protocol buffer.
SentencePieceTraits read_traits(std::string_view model);

// The same model with the pieces `ids` as control pieces, which text never matches. `model` has been read by the
// library before; throws Error for what is no protocol buffer.
std::string with_control_pieces(std::string_view model, const std::set<int32_t>& ids);

}  // namespace uniattn
