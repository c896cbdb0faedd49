#include "cpu/tiling.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "cpu/types.h"

namespace uniattn::cpu {

using at::Tensor;

namespace {

// Tiles of `tile`'s sequence that hold tokens [begin, end).
TileRange range_in_sequence(const Tile& tile, int64_t index, int64_t begin, int64_t end) {
  const int64_t first = index - (tile.begin - tile.sequence_begin) / kTile;
  return {first + (begin - tile.sequence_begin) / kTile, first + (end - tile.sequence_begin + kTile - 1) / kTile};
}

}  // namespace

Tiling::Tiling(const std::vector<int64_t>& bounds, const AttentionOptions& options) : options_(options) {
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    for (int64_t begin = bounds[s]; begin < bounds[s + 1]; begin += kTile) {
      const int64_t count = std::min(kTile, bounds[s + 1] - begin);
      tiles.push_back({begin, count, bounds[s], bounds[s + 1], size, 0});
      size += padded(count);
    }
  }
  int64_t blocks = 0;
  for (int64_t t = 0; t < static_cast<int64_t>(tiles.size()); ++t) {
    const TileRange keys = keys_of(t);
    const int64_t first = tiles[keys.first].offset, count = tiles[t].count;
    tiles[t].blocks = blocks - count * first;
    blocks += count * (tiles[keys.last - 1].offset + padded(tiles[keys.last - 1].count) - first);
    most_key_tiles = std::max(most_key_tiles, keys.last - keys.first);
  }
}

TileRange Tiling::keys_of(int64_t tile) const {
  const Tile& t = tiles[tile];
  const int64_t begin =
      options_.window > 0 ? std::max(t.sequence_begin, t.begin - options_.window + 1) : t.sequence_begin;
  return range_in_sequence(t, tile, begin, options_.causal ? t.begin + t.count : t.sequence_end);
}

TileRange Tiling::queries_of(int64_t tile) const {
  const Tile& t = tiles[tile];
  const int64_t reach = t.begin + t.count - 1 + std::min(options_.window, t.sequence_end);  // any window is allowed
  const int64_t end = options_.window > 0 ? std::min(t.sequence_end, reach) : t.sequence_end;
  return range_in_sequence(t, tile, options_.causal ? t.begin : t.sequence_begin, end);
}

std::vector<TileRange> Tiling::sequences() const {
  std::vector<TileRange> ranges;
  for (int64_t t = 0; t < static_cast<int64_t>(tiles.size()); ++t) {
    if (tiles[t].begin == tiles[t].sequence_begin) ranges.push_back({t, t});
    ranges.back().last = t + 1;
  }
  return ranges;
}

const void* Packed::head(int64_t h) const {
  if (!data_.defined()) return nullptr;
  return static_cast<const char*>(data_.const_data_ptr()) + h * data_.stride(0) * data_.element_size();
}

Type Packer::type(const Tensor& x) {
  // A row of words, pairs of bfloat16, must fill whole vectors.
  return type_of(x) == Type::kBFloat16 && kernels().multiplies_bfloat16 && x.size(2) % 32 == 0 ? Type::kBFloat16
                                                                                               : Type::kFloat32;
}

Packed Packer::copy(const Tensor& x, Packing packing) {
  const bool is_float = type(x) == Type::kFloat32;
  if (is_float && packing == Packing::kPaired) packing = Packing::kRows;
  for (const Job& job : jobs_) {
    if (job.x.is_same(x) && job.packing == packing) return job.packed;
  }
  Packed packed;
  packed.data_ =
      at::empty({x.size(1), tiling_.size, x.size(2)}, x.options().dtype(is_float ? at::kFloat : at::kBFloat16));
  jobs_.push_back({x, x.stride(2) == 1 ? x : x.contiguous(), packing, packed});
  return packed;
}

void Packer::run() {
  const auto tiles = static_cast<int64_t>(tiling_.tiles.size()), jobs = static_cast<int64_t>(jobs_.size());
  // Tokens outside, heads inside: the source is read in its order.
  at::parallel_for(0, jobs * tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const Job& job = jobs_[item / tiles];
      const Tensor &x = job.source, &data = job.packed.data_;
      for (int64_t h = 0; h < x.size(1); ++h) {
        const PackArgs args{head_data(x, h), x.stride(0), x.size(2), type_of(x), type(x), job.packing};
        kernels().pack(args, tiling_.tiles[item % tiles], head_data(data.transpose(0, 1), h));
      }
    }
  });
}

void for_each_item(int64_t items, int64_t floats, const std::function<void(int64_t, float*)>& work) {
  const int64_t threads = std::min<int64_t>(items, at::get_num_threads());
  // Items differ in cost (causal masks), so each thread takes the next one; results do not depend on who computes them.
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    Tensor scratch = at::empty({floats}, at::kFloat);
    for (int64_t thread = first; thread < last; ++thread) {
      for (int64_t item = next++; item < items; item = next++) work(item, scratch.data_ptr<float>());
    }
  });
}

}  // namespace uniattn::cpu
