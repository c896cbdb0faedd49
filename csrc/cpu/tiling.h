// Packed sequences as tiles, and copies of tensors in the layouts that tile products read.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "cpu/kernels.h"
#include "uniattn/ops.h"

namespace uniattn::cpu {

struct Tiling {
  std::vector<Tile> tiles;
  int64_t size = 0;  // tokens in a packed copy: the sum of the tiles' padded sizes

  // `bounds` as returned by check_sequences.
  explicit Tiling(const std::vector<int64_t>& bounds);

  // The tiles of keys that the queries of a tile may see, and the tiles of queries that may see the keys of a tile.
  TileRange keys_of(int64_t tile, const AttentionOptions& options) const;
  TileRange queries_of(int64_t tile, const AttentionOptions& options) const;
  // The tiles of each sequence that has any.
  std::vector<TileRange> sequences() const;
};

// A packed copy of x [tokens, heads, head_dim]; head h starts at head(h). Float32 copies by rows and paired are the
// same.
class Packed {
 public:
  Packed(const at::Tensor& x, const Tiling& tiling, Packing packing);
  const void* head(int64_t h) const;
  // `rows`, a copy of x by rows, as a paired one.
  static Packed paired(const Packed& rows, const at::Tensor& x, const Tiling& tiling);
  // The type of such copies.
  static Type type(const at::Tensor& x);

 private:
  at::Tensor data_;  // [heads, tiling.size, head_dim]
};

// Runs work(item, scratch) for every item in [0, items), in any order, on all threads; scratch has `floats` floats.
void for_each_item(int64_t items, int64_t floats, const std::function<void(int64_t, float*)>& work);

}  // namespace uniattn::cpu
