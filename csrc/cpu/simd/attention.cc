// The forward pass of the superblock's attention, one tile of queries at a time.
#include "cpu/simd/probs.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

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

// out [queries.count, head_dim] += P V of one tile, P by rows.
template <class E>
void add_output(const Tile& queries, const Tile& keys, int64_t d, const E* probs, const void* v_paired, float* out) {
  multiply<E, Layout::kRows>(probs, padded(keys.count), tile_of<E>(v_paired, keys, d), d, out, d, queries.count, d,
                             keys.count, true);
}

template <class T>
void copy(const float* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
}

// Keeps P of a tile of queries, from its scores. Rebuilt, it has the same bits.
void keep_probs(const ForwardArgs& args, float factor, float* scores) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  for (int64_t t = args.keys.first; t < args.keys.last; ++t, scores += kTile * kTile) {
    const Tile& keys = shape.tiles[t];
    const int64_t count = queries.count * padded(keys.count);
    probs_tile(shape, queries, keys, factor, args.lse, scores, scores);
    shape.type == Type::kFloat32 ? copy(scores, count, kept_block<float>(args.kept, queries, keys))
                                 : copy(scores, count, kept_block<BFloat16>(args.kept, queries, keys));
  }
}

template <class E>
void leader_forward_of(const ForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *tile = args.scratch, *out = tile + kTile * kTile, *scores = out + kTile * d;
  float factor = 1;
  Softmax state;
  for (int64_t i = 0; i < queries.count; ++i) state.maximum[i] = -kInfinity, state.total[i] = 0;
  clear(out, queries.count * d);
  for (int64_t t = args.keys.first; t < args.keys.last; ++t) {
    const Tile& keys = shape.tiles[t];
    const int64_t width = padded(keys.count);
    float* raw = args.kept ? scores + (t - args.keys.first) * kTile * kTile : tile;
    factor = score_tile<E>(shape, queries, keys, args.q_rows, args.k_columns, raw);
    for (int64_t i = 0; i < queries.count * width; i += kLanes) store(tile + i, load(raw + i) * factor);
    hide(shape, queries, keys, -kInfinity, tile);
    softmax_tile(queries.count, width, d, tile, out, state);
    add_output<E>(queries, keys, d, as_rows(tile, queries.count, width, reinterpret_cast<E*>(tile)), args.v_paired,
                  out);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    const float inverse = 1 / state.total[i];
    for (int64_t c = 0; c < d; c += kLanes) store(out + i * d + c, load(out + i * d + c) * inverse);
    args.lse[queries.begin + i] = state.maximum[i] + __builtin_logf(state.total[i]);
  }
  if (args.kept) keep_probs(args, factor, scores);
  write_tile(out, queries, d, 1, shape.type, args.out, args.out_stride);
}

// P of a follower's tile, by rows.
template <class E>
const E* follower_probs(const ForwardArgs& args, const Tile& keys, float* buffer) {
  const Tile& queries = args.shape.tiles[args.tile];
  if (args.kept) return kept_rows<E>(args.shape, args.kept, queries, keys, buffer);
  const float factor = score_tile<E>(args.shape, queries, keys, args.q_rows, args.k_columns, buffer);
  probs_tile(args.shape, queries, keys, factor, args.lse, buffer, buffer);
  return as_rows(buffer, queries.count, padded(keys.count), reinterpret_cast<E*>(buffer));
}

template <class E>
void follower_forward_of(const ForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *buffer = args.scratch, *out = buffer + kTile * kTile;
  clear(out, queries.count * d);
  for (int64_t t = args.keys.first; t < args.keys.last; ++t) {
    const Tile& keys = shape.tiles[t];
    add_output<E>(queries, keys, d, follower_probs<E>(args, keys, buffer), args.v_paired, out);
  }
  write_tile(out, queries, d, 1, shape.type, args.out, args.out_stride);
}

#if defined(__AVX512BF16__)
constexpr bool kMultipliesBFloat16 = true;
#else
constexpr bool kMultipliesBFloat16 = false;
#endif
UNIATTN_FOR_ELEMENTS(leader_forward, ForwardArgs)
UNIATTN_FOR_ELEMENTS(follower_forward, ForwardArgs)

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
  table.row_dot = row_dot;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
