// Tiles of the superblock's attention, forward and backward. Products take elements E, float or pairs of bfloat16;
// softmax, sums and gradients of scores are float32 in both cases.
#include "cpu/kernels.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/mask.h"
#include "cpu/simd/pack.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// A tile of a head's packed copy.
template <class E>
const E* tile_of(const void* packed, const Tile& tile, int64_t head_dim) {
  return static_cast<const E*>(packed) + tile.offset * head_dim;
}

// Scores of a tile before the mask, soft-capped; without soft-cap they still lack the scale. Returns the factor they
// lack.
template <class E>
float score_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const void* q_rows,
                 const void* k_columns, float* scores) {
  const int64_t d = shape.head_dim, width = padded(keys.count);
  multiply<E, Layout::kRows>(tile_of<E>(q_rows, queries, d), d, tile_of<E>(k_columns, keys, d), width, scores, width,
                             queries.count, width, d, false);
  if (shape.softcap == 0) return shape.scale;
  const Vec cap = broadcast(shape.softcap), factor = broadcast(shape.scale / shape.softcap);
  for (int64_t i = 0; i < queries.count * width; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * factor));
  return 1;
}

// P = exp(factor * scores - lse), 0 where hidden; `probs` may be `scores`.
void probs_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, float factor, const float* lse,
                const float* scores, float* probs) {
  const int64_t width = padded(keys.count);
  for (int64_t i = 0; i < queries.count; ++i) {
    const Vec row_lse = broadcast(lse[queries.begin + i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) {
      store(probs + j, exp(load(scores + j) * factor - row_lse));
    }
  }
  hide(shape, queries, keys, 0, probs);
}

void clear(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

// Running maximum and sum of the rows of a tile's softmax.
struct Softmax {
  float maximum[kTile], total[kTile];
};

// Turns a tile of scores into exp(scores - maximum) and brings `out` and the sums to the new maximum.
void softmax_tile(int64_t rows, int64_t width, int64_t head_dim, float* scores, float* out, Softmax& state) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * width;
    Vec top = load(row);
    for (int64_t j = kLanes; j < width; j += kLanes) top = max(top, load(row + j));
    const float before = state.maximum[i], tile_top = largest(top);
    const float now = tile_top > before ? tile_top : before;
    if (now == -kInfinity) {  // nothing seen yet
      clear(row, width);
      continue;
    }
    Vec total = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec e = exp(load(row + j) - now);
      store(row + j, e);
      total += e;
    }
    if (now > before) {
      const float shrink = before == -kInfinity ? 0 : exp(broadcast(before - now))[0];
      state.total[i] *= shrink;
      for (int64_t c = 0; c < head_dim; c += kLanes)
        store(out + i * head_dim + c, load(out + i * head_dim + c) * shrink);
      state.maximum[i] = now;
    }
    state.total[i] += sum(total);
  }
}

// out [queries.count, head_dim] += P V of one tile, which is overwritten.
template <class E>
void add_output(const Tile& queries, const Tile& keys, int64_t d, float* probs, const void* v_paired, float* out) {
  const int64_t width = padded(keys.count);
  const E* p = as_rows(probs, queries.count, width, reinterpret_cast<E*>(probs));
  multiply<E, Layout::kRows>(p, width, tile_of<E>(v_paired, keys, d), d, out, d, queries.count, d, keys.count, true);
}

template <class E>
void leader_forward_of(const ForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *scores = args.scratch, *out = scores + kTile * kTile;
  Softmax state;
  for (int64_t i = 0; i < queries.count; ++i) state.maximum[i] = -kInfinity, state.total[i] = 0;
  clear(out, queries.count * d);
  for (int64_t t = args.keys.first; t < args.keys.last; ++t) {
    const Tile& keys = shape.tiles[t];
    const int64_t width = padded(keys.count);
    const float factor = score_tile<E>(shape, queries, keys, args.q_rows, args.k_columns, scores);
    for (int64_t i = 0; i < queries.count * width; i += kLanes) store(scores + i, load(scores + i) * factor);
    hide(shape, queries, keys, -kInfinity, scores);
    softmax_tile(queries.count, width, d, scores, out, state);
    add_output<E>(queries, keys, d, scores, args.v_paired, out);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    const float inverse = 1 / state.total[i];
    for (int64_t c = 0; c < d; c += kLanes) store(out + i * d + c, load(out + i * d + c) * inverse);
    args.lse[queries.begin + i] = state.maximum[i] + __builtin_logf(state.total[i]);
  }
  write_tile(out, queries, d, 1, shape.type, args.out, args.out_stride);
}

template <class E>
void follower_forward_of(const ForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *probs = args.scratch, *out = probs + kTile * kTile;
  clear(out, queries.count * d);
  for (int64_t t = args.keys.first; t < args.keys.last; ++t) {
    const Tile& keys = shape.tiles[t];
    const float factor = score_tile<E>(shape, queries, keys, args.q_rows, args.k_columns, probs);
    probs_tile(shape, queries, keys, factor, args.lse, probs, probs);
    add_output<E>(queries, keys, d, probs, args.v_paired, out);
  }
  write_tile(out, queries, d, 1, shape.type, args.out, args.out_stride);
}

// gradient [keys.count, head_dim] += weights^T rows, for P^T dO and dS^T Q; both operands are paired over the queries.
template <class E>
void add_key_gradient(const Tile& queries, const Tile& keys, int64_t d, const E* weights, const void* rows,
                      float* gradient) {
  multiply<E, Layout::kPaired>(weights, padded(keys.count), tile_of<E>(rows, queries, d), d, gradient, d, keys.count, d,
                               queries.count, true);
}

template <class E>
void value_backward_of(const ValueBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& keys = shape.tiles[args.tile];
  const int64_t d = shape.head_dim, width = padded(keys.count);
  float *probs = args.scratch, *dv = probs + kTile * kTile;
  clear(dv, keys.count * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    const ValueHead& head = args.heads[h];
    for (int64_t t = args.queries.first; t < args.queries.last; ++t) {
      const Tile& queries = shape.tiles[t];
      const float factor = score_tile<E>(shape, queries, keys, head.q_rows, head.k_columns, probs);
      probs_tile(shape, queries, keys, factor, head.lse, probs, probs);
      const E* p = as_paired(probs, queries.count, width, reinterpret_cast<E*>(probs));
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

// dS = P (dP - delta), times the derivative of the soft-cap, in place of dP. `scores` are capped; the gradient lacks
// the scale.
void grad_scores_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const float* delta,
                      const float* scores, const float* probs, float* dp) {
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

template <class E>
void superblock_backward_of(const SuperblockBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& keys = shape.tiles[args.tile];
  const int64_t d = shape.head_dim, width = padded(keys.count);
  float *scores = args.scratch, *probs = scores + kTile * kTile, *ds = probs + kTile * kTile;
  float *operand = ds + kTile * kTile, *dk = operand + kTile * kTile, *dv = dk + kTile * d;
  clear(dk, keys.count * d);
  clear(dv, keys.count * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    const LeaderHead& head = args.heads[h];
    for (int64_t t = args.queries.first; t < args.queries.last; ++t) {
      const Tile& queries = shape.tiles[t];
      const float factor = score_tile<E>(shape, queries, keys, head.q_rows, args.k_columns, scores);
      probs_tile(shape, queries, keys, factor, head.lse, scores, probs);
      const E* p = as_paired(probs, queries.count, width, reinterpret_cast<E*>(operand));
      add_key_gradient<E>(queries, keys, d, p, head.grad_out_paired, dv);
      grad_probs_tile<E>(queries, keys, d, head, ds);
      grad_scores_tile(shape, queries, keys, head.delta, scores, probs, ds);
      const E* ds_rows = as_rows(ds, queries.count, width, reinterpret_cast<E*>(operand));
      multiply<E, Layout::kRows>(ds_rows, width, tile_of<E>(args.k_paired, keys, d), d, head.dq + queries.offset * d, d,
                                 queries.count, d, keys.count, true);
      const E* ds_paired = as_paired(ds, queries.count, width, reinterpret_cast<E*>(ds));
      add_key_gradient<E>(queries, keys, d, ds_paired, head.q_paired, dk);
    }
  }
  write_tile(dk, keys, d, shape.scale, shape.type, args.dk, args.stride);
  write_tile(dv, keys, d, 1, shape.type, args.dv, args.stride);
}

// The instance of a kernel for the elements of the packed copies.
#if defined(__AVX512BF16__)
constexpr bool kMultipliesBFloat16 = true;
#define UNIATTN_FOR_ELEMENTS(kernel, Args)                                                        \
  void kernel(const Args& args) {                                                                 \
    args.shape.packed == Type::kFloat32 ? kernel##_of<float>(args) : kernel##_of<BFloat16>(args); \
  }
#else
constexpr bool kMultipliesBFloat16 = false;
#define UNIATTN_FOR_ELEMENTS(kernel, Args) \
  void kernel(const Args& args) {          \
    kernel##_of<float>(args);              \
  }
#endif
UNIATTN_FOR_ELEMENTS(leader_forward, ForwardArgs)
UNIATTN_FOR_ELEMENTS(follower_forward, ForwardArgs)
UNIATTN_FOR_ELEMENTS(value_backward, ValueBackwardArgs)
UNIATTN_FOR_ELEMENTS(superblock_backward, SuperblockBackwardArgs)

template <class T>
void row_dot_of(const T* a, const T* b, int64_t tokens, int64_t heads, int64_t head_dim, int64_t begin, int64_t end,
                float* out) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t row = (t * heads + h) * head_dim;
      Vec total = {};
      for (int64_t c = row; c < row + head_dim; c += kLanes) total += load(a + c) * load(b + c);
      out[h * tokens + t] = sum(total);
    }
  }
}

void row_dot(const void* a, const void* b, Type type, int64_t tokens, int64_t heads, int64_t head_dim, int64_t begin,
             int64_t end, float* out) {
  type == Type::kFloat32
      ? row_dot_of(static_cast<const float*>(a), static_cast<const float*>(b), tokens, heads, head_dim, begin, end, out)
      : row_dot_of(static_cast<const BFloat16*>(a), static_cast<const BFloat16*>(b), tokens, heads, head_dim, begin,
                   end, out);
}

}  // namespace

void fill_attention(Kernels& table) {
  table.multiplies_bfloat16 = kMultipliesBFloat16;
  table.pack = pack;
  table.unpack = unpack;
  table.leader_forward = leader_forward;
  table.follower_forward = follower_forward;
  table.value_backward = value_backward;
  table.superblock_backward = superblock_backward;
  table.row_dot = row_dot;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
