// Packed sequences as tiles with what each of them sees, and copies of tensors in the layouts that tile products read.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "cpu/kernels.h"
#include "uniattn/ops.h"

namespace uniattn::cpu {

struct Tiling {
  std::vector<Tile> tiles;
  int64_t size = 0;            // tokens in a packed copy: the sum of the tiles' padded sizes
  int64_t most_key_tiles = 0;  // the largest number of tiles in keys_of()

  // `bounds` as returned by check_sequences.
  Tiling(const std::vector<int64_t>& bounds, const AttentionOptions& options);

  // The tiles of keys that the queries of a tile may see, and the tiles of queries that may see the keys of a tile.
  TileRange keys_of(int64_t tile) const;
  TileRange queries_of(int64_t tile) const;
  // The tiles of each sequence that has any.
  std::vector<TileRange> sequences() const;

 private:
  AttentionOptions options_;
};

// A packed copy of x [tokens, heads, head_dim]; head h starts at head(h). Float32 copies by rows and paired are the
// same.
class Packed {
 public:
  Packed() = default;  // no copy: head() is null
  Packed(const at::Tensor& x, const Tiling& tiling, Packing packing);
  const void* head(int64_t h) const;
  // No copy where `needed` is false.
  static Packed where(bool needed, const at::Tensor& x, const Tiling& tiling, Packing packing) {
    return needed ? Packed(x, tiling, packing) : Packed();
  }
  // A paired copy of x; `rows` is one by rows, or none.
  static Packed paired(const Packed& rows, const at::Tensor& x, const Tiling& tiling);
  // The type of such copies.
  static Type type(const at::Tensor& x);

 private:
  at::Tensor data_;  // [heads, tiling.size, head_dim]
};

// Runs work(item, scratch) for every item in [0, items), in any order, on all threads; scratch has `floats` floats.
void for_each_item(int64_t items, int64_t floats, const std::function<void(int64_t, float*)>& work);

}  // namespace uniattn::cpu
