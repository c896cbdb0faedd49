// Byte-pair encoding of one word whose symbols are bytes.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/bpe_merges.h"

namespace uniattn {

class ByteBpe {
 public:
  // `tokens`: bytes of each id, "" for ids that text cannot become. `whole_words`: a word that is a token is that
  // token, whether or not merges lead there (tokenizer.json's ignore_merges).
  ByteBpe(std::vector<std::string> tokens, const std::vector<Merge>& merges, bool whole_words);

  // Appends the ids of `word`. Time n log n in its length. Throws Error naming a byte that no token stands for.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

  const std::vector<std::string>& tokens() const { return tokens_; }

 private:
  std::vector<std::string> tokens_;
  std::array<int32_t, 256> byte_ids_;  // -1: no token
  BpeMerges merges_;
  std::unordered_map<std::string_view, int32_t> words_;  // views of tokens_; empty unless whole words count
};

}  // namespace uniattn
