// CPU kernels of attention of the last tokens of sequences over all their tokens, with the superblock's tile kernels.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/decode.h"
#include "cpu/heads.h"
#include "cpu/kernels.h"
#include "cpu/tiling.h"
#include "cpu/types.h"
#include "decode_checks.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A tile of queries: where it stands among the keys, the keys it sees, and the distance from its tokens' positions
// among all keys to their places in q.
struct QueryTile {
  int64_t tile;
  TileRange keys;
  int64_t shift;
};

// The tiles of the keys, and behind them those of the queries, on the same positions.
struct PrefillTiles {
  Tiling queries, keys;
  std::vector<Tile> tiles;
  std::vector<QueryTile> query_tiles;
  int64_t most_key_tiles = 0;

  PrefillTiles(const PrefillBounds& bounds, const AttentionOptions& options)
      : queries(bounds.queries, options), keys(bounds.keys, options), tiles(keys.tiles) {
    size_t tile = 0;
    int64_t key_tiles = 0;  // of the sequences before
    int64_t blocks = 0;     // elements of P before the tile
    for (size_t s = 0; s + 1 < bounds.queries.size(); ++s) {
      const int64_t shift = bounds.keys[s + 1] - bounds.queries[s + 1];
      for (; tile < queries.tiles.size() && queries.tiles[tile].sequence_begin == bounds.queries[s] &&
             queries.tiles[tile].sequence_end == bounds.queries[s + 1];
           ++tile) {
        Tile moved = queries.tiles[tile];
        moved.begin += shift, moved.sequence_begin = bounds.keys[s], moved.sequence_end = bounds.keys[s + 1];
        const int64_t position = moved.begin - bounds.keys[s];
        const int64_t first = options.window > 0 ? std::max<int64_t>(0, position - options.window + 1) : 0;
        const TileRange seen{key_tiles + first / kTile, key_tiles + (position + moved.count + kTile - 1) / kTile};
        const Tile& last = keys.tiles[seen.last - 1];
        moved.blocks = blocks - moved.count * keys.tiles[seen.first].offset;
        blocks = moved.blocks + moved.count * (last.offset + padded(last.count));
        most_key_tiles = std::max(most_key_tiles, seen.last - seen.first);
        query_tiles.push_back({static_cast<int64_t>(tiles.size()), seen, shift});
        tiles.push_back(moved);
      }
      key_tiles += (bounds.keys[s + 1] - bounds.keys[s] + kTile - 1) / kTile;
    }
  }
};

// The leader writes lse [heads, tokens], and P where it is kept; a follower reads them.
Tensor forward(Role role, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse,
               const OptionalTensor& kept, const PrefillBounds& bounds, const OptionalTensor& head_map,
               const AttentionOptions& options) {
  const PrefillTiles tiles(bounds, options);
  const Heads heads(q, k, head_map);
  const int64_t per_value_group = heads.count / v.size(1);
  const bool rebuilds = role == Role::kLeader || !kept;
  Packer queries(tiles.queries), keys(tiles.keys);
  const Packed q_rows = queries.copy_if(rebuilds, q, Packing::kRows);
  const Packed k_columns = keys.copy_if(rebuilds, k, Packing::kColumns), v_paired = keys.copy(v, Packing::kPaired);
  queries.run();
  keys.run();
  AttentionShape shape = attention_shape(tiles.keys, q, options);
  shape.tiles = tiles.tiles.data();
  Tensor out = at::empty(q.sizes(), q.options());
  const int64_t count = static_cast<int64_t>(tiles.query_tiles.size());
  const auto kernel = role == Role::kLeader ? kernels().leader_forward : kernels().follower_forward;
  const int64_t floats = forward_scratch(shape.head_dim, kept && rebuilds ? tiles.most_key_tiles : 0);
  for_each_item(heads.count * count, floats, [&](int64_t item, float* scratch) {
    // Late tiles see most keys: they come first, so that no thread is left with one at the end.
    const QueryTile& tile = tiles.query_tiles[count - 1 - item / heads.count];
    const int64_t head = item % heads.count, leader = heads.leader(head);
    char* first = static_cast<char*>(head_data(out, head)) - tile.shift * out.stride(0) * out.element_size();
    kernel({shape, tile.tile, tile.keys, q_rows.head(leader), k_columns.head(heads.group_of(leader)),
            v_paired.head(head / per_value_group), lse.data_ptr<float>() + leader * lse.stride(0) - tile.shift,
            kept ? kept_probs(*kept, leader) : nullptr, first, out.stride(0), scratch});
  });
  return out;
}

std::tuple<Tensor, Tensor> prefill_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t window,
                                             double softcap, std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, options, tiles);
  if (takes_widened(q)) {
    const auto [out, lse] = prefill_attention(widen(q), widen(k), widen(v), cu_seqlens_q, cu_seqlens_k, window, softcap,
                                              resolved_scale(options, q.size(2)), tiles);
    return {narrow_to(out, q), lse};
  }
  if (!takes(q))
    return composite::prefill_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, window, softcap, scale, tiles);
  const PrefillBounds bounds = check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k);
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  return {forward(Role::kLeader, q, k, v, lse, tiles, bounds, std::nullopt, options), lse};
}

Tensor prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, const OptionalTensor& head_map, int64_t window, double softcap,
                      std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, options, tiles);
  if (takes_widened(q)) {
    return narrow_to(prefill_attend(widen(q), widen(k), lse, widen(v), cu_seqlens_q, cu_seqlens_k, head_map, window,
                                    softcap, resolved_scale(options, q.size(2)), tiles),
                     q);
  }
  if (!takes(q)) {
    return composite::prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, window, softcap, scale, tiles);
  }
  const PrefillBounds bounds = check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k);
  return forward(Role::kFollower, q, k, v, lse.contiguous(), tiles, bounds, head_map, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("prefill_attention", prefill_attention);
  m.impl("prefill_attend", prefill_attend);
}

}  // namespace uniattn::cpu
