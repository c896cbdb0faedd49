// What the SentencePiece library does not let one see or change in a model: read from its protocol buffer.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

namespace uniattn {

// The same model with the pieces `ids` as control pieces, which text never matches. `model` has been read by the
// library before; throws Error for what is no protocol buffer.
std::string with_control_pieces(std::string_view model, const std::set<int32_t>& ids);

}  // namespace uniattn
