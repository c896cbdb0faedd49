// The gradients of the superblock's attention, one tile of keys at a time.
#include "cpu/simd/probs.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

// gradient [keys.count, head_dim] += weights^T rows, for P^T dO and dS^T Q; both operands are paired over the queries.
template <class E>
void add_key_gradient(const Tile& queries, const Tile& keys, int64_t d, const E* weights, const void* rows,
                      float* gradient) {
  multiply<E, Layout::kPaired>(weights, padded(keys.count), tile_of<E>(rows, queries, d), d, gradient, d, keys.count, d,
                               queries.count, true);
}

// P of a tile, paired over the queries.
template <class E>
const E* paired_probs(const AttentionShape& shape, const Tile& queries, const Tile& keys, const ValueHead& head,
                      float* buffer) {
  const int64_t width = padded(keys.count);
  E* operand = reinterpret_cast<E*>(buffer);
  if (head.kept) {
    return as_paired(kept_rows<E>(shape, head.kept, queries, keys, buffer), queries.count, width, operand);
  }
  const float factor = score_tile<E>(shape, queries, keys, head.q_rows, head.k_columns, buffer);
  probs_tile(shape, queries, keys, factor, head.lse, buffer, buffer);
  return as_paired(buffer, queries.count, width, operand);
}

template <class E>
void value_backward_of(const ValueBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& keys = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *buffer = args.scratch, *dv = buffer + kTile * kTile;
  clear(dv, keys.count * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    const ValueHead& head = args.heads[h];
    for (int64_t t = args.queries.first; t < args.queries.last; ++t) {
      const Tile& queries = shape.tiles[t];
      if (head.kept && t + 1 < args.queries.last) prefetch_kept(shape, head.kept, shape.tiles[t + 1], keys);
      const E* p = paired_probs<E>(shape, queries, keys, head, buffer);
      add_key_gradient<E>(queries, keys, d, p, head.grad_out_paired, dv);
    }
  }
  write_tile(dv, keys, d, 1, shape.type, args.dv, args.dv_stride);
}

// dP of a tile, summed over the readers of the pattern.
template <class E>
void grad_probs_tile(const Tile& queries, const Tile& keys, int64_t d, const LeaderHead& head, float* dp) {
  const int64_t width = padded(keys.count);
  for (int64_t r = 0; r < head.reader_count; ++r) {
    const Reader& reader = head.readers[r];
    multiply<E, Layout::kRows>(tile_of<E>(reader.grad_out_rows, queries, d), d, tile_of<E>(reader.v_columns, keys, d),
                               width, dp, width, queries.count, width, d, r > 0);
  }
}

// dS = P (dP - delta), times the derivative of the soft-cap, in place of dP. `scores` are capped, and not read without
// soft-cap; the gradient lacks the scale.
template <class E>
void grad_scores_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const float* delta,
                      const float* scores, const E* probs, float* dp) {
  const int64_t width = padded(keys.count);
  for (int64_t i = 0; i < queries.count; ++i) {
    const Vec row_delta = broadcast(delta[queries.begin + i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) {
      store(dp + j, load(probs + j) * (load(dp + j) - row_delta));
    }
  }
  if (shape.softcap == 0) return;
  const Vec inverse = broadcast(1 / shape.softcap);
  for (int64_t j = 0; j < queries.count * width; j += kLanes) {
    const Vec ratio = load(scores + j) * inverse;
    store(dp + j, load(dp + j) * (1.f - ratio * ratio));
  }
}

// The scratch of superblock_backward for one tile of keys, and the tile's sums over the tiles of queries.
struct Buffers {
  float *scores, *probs, *ds, *operand;  // [kTile][kTile]
  float *dk, *dv;                        // [kTile][head_dim]
};

Buffers buffers(const SuperblockBackwardArgs& args, int64_t tile) {
  constexpr int64_t square = kTile * kTile;
  float* const scratch = args.scratch;
  float* const sums = scratch + 4 * square + (tile - args.tiles.first) * 2 * kTile * args.shape.head_dim;
  return {
      scratch, scratch + square, scratch + 2 * square, scratch + 3 * square, sums, sums + kTile * args.shape.head_dim};
}

// Adds what one tile of queries gives, `probs` being its P by rows, which may lie in b.probs.
template <class E>
void add_gradients(const SuperblockBackwardArgs& args, const LeaderHead& head, const Tile& queries, const Tile& keys,
                   const E* probs, const Buffers& b) {
  const AttentionShape& shape = args.shape;
  const int64_t d = shape.head_dim, width = padded(keys.count);
  E* operand = reinterpret_cast<E*>(b.operand);
  add_key_gradient<E>(queries, keys, d, as_paired(probs, queries.count, width, operand), head.grad_out_paired, b.dv);
  grad_probs_tile<E>(queries, keys, d, head, b.ds);
  grad_scores_tile(shape, queries, keys, head.delta, b.scores, probs, b.ds);
  const E* ds_rows = as_rows(b.ds, queries.count, width, operand);
  multiply<E, Layout::kRows>(ds_rows, width, tile_of<E>(args.k_paired, keys, d), d, head.dq + queries.offset * d, d,
                             queries.count, d, keys.count, true);
  const E* ds_paired = as_paired(ds_rows, queries.count, width, reinterpret_cast<E*>(b.ds));
  add_key_gradient<E>(queries, keys, d, ds_paired, head.q_paired, b.dk);
}

template <class E>
void add_block(const SuperblockBackwardArgs& args, const LeaderHead& head, const Tile& queries, const Tile& keys,
               const Buffers& b) {
  const AttentionShape& shape = args.shape;
  float factor = 0;
  if (!head.kept || shape.softcap > 0) {
    factor = score_tile<E>(shape, queries, keys, head.q_rows, args.k_columns, b.scores);
  }
  if (head.kept) {
    add_gradients<E>(args, head, queries, keys, kept_rows<E>(shape, head.kept, queries, keys, b.probs), b);
  } else {
    probs_tile(shape, queries, keys, factor, head.lse, b.scores, b.probs);
    const E* probs = as_rows(b.probs, queries.count, padded(keys.count), reinterpret_cast<E*>(b.probs));
    add_gradients<E>(args, head, queries, keys, probs, b);
  }
}

template <class E>
void superblock_backward_of(const SuperblockBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const auto [first, last] = args.tiles;
  const int64_t d = shape.head_dim;
  for (int64_t tile = first; tile < last; ++tile) clear(buffers(args, tile).dk, 2 * kTile * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    // A later tile of keys is seen by no earlier queries, and by later ones.
    for (int64_t t = args.queries[0].first; t < args.queries[last - 1 - first].last; ++t) {
      for (int64_t tile = first; tile < last; ++tile) {
        const TileRange& queries = args.queries[tile - first];
        if (t < queries.first || t >= queries.last) continue;
        add_block<E>(args, args.heads[h], shape.tiles[t], shape.tiles[tile], buffers(args, tile));
      }
    }
  }
  for (int64_t tile = first; tile < last; ++tile) {
    const Buffers b = buffers(args, tile);
    write_tile(b.dk, shape.tiles[tile], d, shape.scale, shape.type, args.dk, args.stride);
    write_tile(b.dv, shape.tiles[tile], d, 1, shape.type, args.dv, args.stride);
  }
}

UNIATTN_FOR_ELEMENTS(value_backward, ValueBackwardArgs)
UNIATTN_FOR_ELEMENTS(superblock_backward, SuperblockBackwardArgs)

}  // namespace

void fill_attention_backward(Kernels& table) {
  table.value_backward = value_backward;
  table.superblock_backward = superblock_backward;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
