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

PackArgs pack_args(const Tensor& x, int64_t head, double factor) {
  const char* source = static_cast<const char*>(x.const_data_ptr()) + head * x.stride(1) * x.element_size();
  return {source, x.stride(0), type_of(x), x.size(2), static_cast<float>(factor)};
}

Tensor unit_stride(const Tensor& x) {
  return x.stride(2) == 1 ? x : x.contiguous();
}

}  // namespace

Tiling::Tiling(const std::vector<int64_t>& bounds) {
  for (size_t s = 0; s + 1 < bounds.size(); ++s) {
    for (int64_t begin = bounds[s]; begin < bounds[s + 1]; begin += kTile) {
      const int64_t count = std::min(kTile, bounds[s + 1] - begin);
      tiles.push_back({begin, count, bounds[s], bounds[s + 1], columns});
      columns += padded(count);
    }
  }
}

TileRange Tiling::keys_of(int64_t tile, const AttentionOptions& options) const {
  const Tile& t = tiles[tile];
  const int64_t begin =
      options.window > 0 ? std::max(t.sequence_begin, t.begin - options.window + 1) : t.sequence_begin;
  return range_in_sequence(t, tile, begin, options.causal ? t.begin + t.count : t.sequence_end);
}

TileRange Tiling::queries_of(int64_t tile, const AttentionOptions& options) const {
  const Tile& t = tiles[tile];
  const int64_t reach = t.begin + t.count - 1 + options.window;
  const int64_t end = options.window > 0 ? std::min(t.sequence_end, reach) : t.sequence_end;
  return range_in_sequence(t, tile, options.causal ? t.begin : t.sequence_begin, end);
}

std::vector<TileRange> Tiling::sequences() const {
  std::vector<TileRange> ranges;
  for (int64_t t = 0; t < static_cast<int64_t>(tiles.size()); ++t) {
    if (tiles[t].begin == tiles[t].sequence_begin) ranges.push_back({t, t});
    ranges.back().last = t + 1;
  }
  return ranges;
}

Packed Packed::rows(const Tensor& x, double factor) {
  constexpr int64_t kTokensPerItem = 256;
  const Tensor source = unit_stride(x);
  const int64_t tokens = x.size(0), heads = x.size(1), parts = (tokens + kTokensPerItem - 1) / kTokensPerItem;
  Tensor data = at::empty({heads, tokens, x.size(2)}, x.options().dtype(at::kFloat));
  at::parallel_for(0, heads * parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item / parts, begin = item % parts * kTokensPerItem;
      kernels().pack_rows(pack_args(source, head, factor), begin, std::min(begin + kTokensPerItem, tokens),
                          data.data_ptr<float>() + head * data.stride(0));
    }
  });
  return Packed(data);
}

Packed Packed::columns(const Tensor& x, const Tiling& tiling) {
  const Tensor source = unit_stride(x);
  const int64_t tiles = static_cast<int64_t>(tiling.tiles.size());
  Tensor data = at::empty({x.size(1), tiling.columns, x.size(2)}, x.options().dtype(at::kFloat));
  at::parallel_for(0, x.size(1) * tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item / tiles;
      kernels().pack_columns(pack_args(source, head, 1), tiling.tiles[item % tiles],
                             data.data_ptr<float>() + head * data.stride(0));
    }
  });
  return Packed(data);
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
