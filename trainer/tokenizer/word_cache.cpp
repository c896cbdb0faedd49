#include "tokenizer/word_cache.h"

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace uniattn {
namespace {

constexpr size_t kEntries = 1 << 16;

}  // namespace

WordCache::WordCache() : entries_(kEntries) {}

size_t WordCache::slot(std::string_view word) const {
  return XXH3_64bits(word.data(), word.size()) % kEntries;
}

bool WordCache::find(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty() || word.size() > sizeof(Entry::word)) return false;
  const Entry& entry = entries_[slot(word)];
  if (entry.length != word.size() || std::memcmp(entry.word, word.data(), word.size()) != 0) return false;
  ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
  return true;
}

void WordCache::store(std::string_view word, std::span<const int32_t> ids) {
  if (word.empty() || word.size() > sizeof(Entry::word) || ids.size() > std::size(Entry{}.ids)) return;
  Entry& entry = entries_[slot(word)];
  entry.length = static_cast<uint8_t>(word.size());
  entry.count = static_cast<uint8_t>(ids.size());
  std::memcpy(entry.word, word.data(), word.size());
  std::copy(ids.begin(), ids.end(), entry.ids);
}

}  // namespace uniattn
