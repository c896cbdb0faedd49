// What the queries of one tile see of the keys of another.
#pragma once
#include "cpu/kernels.h"

namespace uniattn::cpu::UNIATTN_ISA {

// The keys of a tile that one query sees: [begin, end) within the tile.
struct Visible {
  int64_t begin, end;
};

inline Visible visible(const AttentionShape& shape, const Tile& keys, int64_t query) {
  int64_t begin = 0, end = keys.count;
  if (shape.causal && query - keys.begin + 1 < end) end = query - keys.begin + 1;
  if (shape.window > 0 && query - shape.window + 1 - keys.begin > begin) begin = query - shape.window + 1 - keys.begin;
  if (end < 0) end = 0;
  return {begin < end ? begin : end, end};
}

inline bool all_visible(const AttentionShape& shape, const Tile& queries, const Tile& keys) {
  return keys.count == padded(keys.count) && (!shape.causal || keys.begin + keys.count - 1 <= queries.begin) &&
         (shape.window == 0 || queries.begin + queries.count - 1 - keys.begin < shape.window);
}

// Overwrites what the queries do not see, padding included, in a tile [queries.count, padded(keys.count)].
inline void hide(const AttentionShape& shape, const Tile& queries, const Tile& keys, float value, float* tile) {
  if (all_visible(shape, queries, keys)) return;
  const int64_t width = padded(keys.count);
  for (int64_t i = 0; i < queries.count; ++i, tile += width) {
    const Visible seen = visible(shape, keys, queries.begin + i);
    for (int64_t j = 0; j < seen.begin; ++j) tile[j] = value;
    for (int64_t j = seen.end; j < width; ++j) tile[j] = value;
  }
}

}  // namespace uniattn::cpu::UNIATTN_ISA
