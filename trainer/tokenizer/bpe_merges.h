// Byte-pair encoding: the most urgent pair of neighbours is merged until none is left.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace uniattn {

// Two neighbouring tokens that may become one.
struct Merge {
  int32_t left, right, result;
  int32_t rank;  // lower ones are merged first, of equal ones the leftmost
};

// Memory that one thread reuses from word to word.
struct BpeScratch {
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // index in `symbols`, -1 at the ends
  };
  struct Candidate {
    int32_t rank, at;  // `at`: index of the left symbol
    int32_t left, right, result;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

class BpeMerges {
 public:
  // Of two merges of the same pair the later counts.
  explicit BpeMerges(const std::vector<Merge>& merges);

  // Appends what becomes of `scratch.symbols`, of which only the ids need to be set. Time n log n in their number.
  void apply(BpeScratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct PairHash {
    size_t operator()(uint64_t pair) const;
  };
  struct Target {
    int32_t result, rank;
  };
  void push_candidate(int32_t at, BpeScratch& scratch) const;
  std::unordered_map<uint64_t, Target, PairHash> merges_;
};

}  // namespace uniattn
