// Rows into a cache of pages, or out of it.
#pragma once
#include "cuda/block.cuh"
#include "cuda/decode_params.h"

namespace uniattn::cuda {

enum class Direction { kIntoCache, kOutOfCache };

// A warp takes one row. Word is what it is copied by: row_bytes and both addresses are multiples of it.
template <typename Word, Direction kDirection>
struct CacheRows {
  using Args = CacheRowsArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return {static_cast<int>((a.tokens * a.kv_heads + kWarps - 1) / kWarps), 1}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    const int64_t row = static_cast<int64_t>(block_x()) * kWarps + thread_index() / 32;
    if (row >= a.tokens * a.kv_heads) return;
    const int64_t slot = a.slots[row / a.kv_heads];
    require(slot >= 0 && slot < a.cache_slots, "slots has an entry that is no slot of the cache");
    const int64_t page = slot / a.page_size, place = slot % a.page_size;
    const int words = a.row_bytes / static_cast<int>(sizeof(Word));
    Word* cached = static_cast<Word*>(a.cache) + ((page * a.kv_heads + row % a.kv_heads) * a.page_size + place) * words;
    Word* other = static_cast<Word*>(a.rows) + row * words;
    for (int i = thread_index() % 32; i < words; i += 32) {
      if constexpr (kDirection == Direction::kIntoCache) {
        cached[i] = other[i];
      } else {
        other[i] = cached[i];
      }
    }
  }
};

}  // namespace uniattn::cuda
