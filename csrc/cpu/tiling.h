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

// A packed copy of a tensor [tokens, heads, head_dim]; head h starts at head(h), which is null where there is none.
class Packed {
 public:
  const void* head(int64_t h) const;

 private:
  friend class Packer;
  at::Tensor data_;  // [heads, tiling.size, head_dim]
};

// Makes packed copies, all that an operator needs in one go: to wake the threads takes as long as to copy a tensor.
class Packer {
 public:
  explicit Packer(const Tiling& tiling) : tiling_(tiling) {}
  // A copy of x, to be filled by run(). Float32 copies by rows and paired are the same, and are made once.
  Packed copy(const at::Tensor& x, Packing packing);
  // No copy where `needed` is false.
  Packed copy_if(bool needed, const at::Tensor& x, Packing packing) { return needed ? copy(x, packing) : Packed(); }
  void run();
  // The type of such copies.
  static Type type(const at::Tensor& x);

 private:
  struct Job {
    at::Tensor x, source;  // source: x with contiguous head_dim
    Packing packing;
    Packed packed;
  };
  const Tiling& tiling_;
  std::vector<Job> jobs_;
};

// Runs work(item, scratch) for every item in [0, items), in any order, on all threads; scratch has `floats` floats.
void for_each_item(int64_t items, int64_t floats, const std::function<void(int64_t, float*)>& work);

}  // namespace uniattn::cpu
