// Where a BPE model of pieces can be applied to the parts of a text instead of the whole: between two characters that
// are neighbours in none of its pieces. The parts are short and repeat, so that most need to be encoded only once.
#pragma once
#include <array>
#include <bitset>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace uniattn {

struct SentencePieceTraits;

// Whether parts may be encoded one by one at all: merges that know no more than their two neighbours, and a normalizer
// that does nothing but write spaces as U+2581.
bool encodes_parts_independently(const SentencePieceTraits& traits);

class PieceBoundaries {
 public:
  // `pieces`: those that text can become, but for single bytes.
  explicit PieceBoundaries(const std::vector<std::string>& pieces);
  // Calls `part` with the parts of `text` (valid UTF-8), in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& part) const;

 private:
  // Characters as far as they are told apart: ASCII, U+2581 as the space that it stands for, and all others as one.
  static constexpr size_t kClasses = 129;
  struct Character {
    size_t kind, bytes;
  };
  static Character first_character(std::string_view text);
  std::array<std::bitset<kClasses>, kClasses> neighbours_;  // [left][right]: stand side by side in some piece
};

}  // namespace uniattn
