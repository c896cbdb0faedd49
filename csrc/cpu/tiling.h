// Packed sequences as tiles, and float32 copies of tensors in the two layouts that tile products read.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "cpu/kernels.h"
#include "uniattn/ops.h"

namespace uniattn::cpu {

struct Tiling {
  std::vector<Tile> tiles;
  int64_t columns = 0;  // sum of the tiles' padded sizes

  // `bounds` as returned by check_sequences.
  explicit Tiling(const std::vector<int64_t>& bounds);

  // The tiles of keys that the queries of a tile may see, and the tiles of queries that may see the keys of a tile.
  TileRange keys_of(int64_t tile, const AttentionOptions& options) const;
  TileRange queries_of(int64_t tile, const AttentionOptions& options) const;
  // The tiles of each sequence that has any.
  std::vector<TileRange> sequences() const;
};

// A float32 copy of x [tokens, heads, head_dim]: head h starts at head(h).
class Packed {
 public:
  static Packed rows(const at::Tensor& x, double factor = 1);        // see AttentionShape: rows
  static Packed columns(const at::Tensor& x, const Tiling& tiling);  // and columns
  const float* head(int64_t h) const { return data_.const_data_ptr<float>() + h * data_.stride(0); }

 private:
  explicit Packed(at::Tensor data) : data_(std::move(data)) {}
  at::Tensor data_;  // [heads, tokens or padded tokens, head_dim]
};

// Runs work(item, scratch) for every item in [0, items), in any order, on all threads; scratch has `floats` floats.
void for_each_item(int64_t items, int64_t floats, const std::function<void(int64_t, float*)>& work);

}  // namespace uniattn::cpu
