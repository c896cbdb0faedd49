// The ids of words that were seen lately. Text repeats a few thousand words most of the time, and looking one up is
// much cheaper than merging it again.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace uniattn {

// For one thread. Fixed memory, 4 MiB: a word takes the place of the one that has the same hash.
class WordCache {
 public:
  WordCache();
  // Appends the ids of `word` and returns true, if they are here.
  bool find(std::string_view word, std::vector<int32_t>& ids) const;
  // Long words and those of many tokens are not worth their place and are left out.
  void store(std::string_view word, std::span<const int32_t> ids);

 private:
  struct alignas(64) Entry {  // a line of the processor's cache
    uint8_t length = 0, count = 0;
    char word[22];
    int32_t ids[10];
  };
  size_t slot(std::string_view word) const;
  std::vector<Entry> entries_;
};

}  // namespace uniattn
