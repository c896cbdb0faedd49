// Byte-pair encoding of one word: bytes become tokens, and the most urgent pair of neighbours is merged until none is
// left.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
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

class ByteBpe {
 public:
  // `tokens`: bytes of each id, "" for ids that text cannot become. `whole_words`: a word that is a token is that
  // token, whether or not merges lead there (tokenizer.json's ignore_merges). Of two merges of the same pair the later
  // counts.
  ByteBpe(std::vector<std::string> tokens, const std::vector<Merge>& merges, bool whole_words);

  // Appends the ids of `word`. Time n log n in its length. Throws Error naming a byte that no token stands for.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  struct PairHash {
    size_t operator()(uint64_t pair) const;
  };
  struct Target {
    int32_t result, rank;
  };
  void push_candidate(int32_t at, BpeScratch& scratch) const;

  std::vector<std::string> tokens_;
  std::array<int32_t, 256> byte_ids_;  // -1: no token
  std::unordered_map<uint64_t, Target, PairHash> merges_;
  std::unordered_map<std::string_view, int32_t> words_;  // views of tokens_; empty unless whole words count
};

}  // namespace uniattn
