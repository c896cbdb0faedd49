// Tiles of the superblock's attention, forward and backward, in float32.
#include "cpu/kernels.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

static_assert(kColumns == kHeadDimMultiple);

constexpr float kInfinity = __builtin_inff();

template <class T>
void pack_rows_of(const PackArgs& args, int64_t begin, int64_t end, float* rows) {
  const T* source = static_cast<const T*>(args.source);
  const Vec factor = broadcast(args.factor);
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t c = 0; c < args.head_dim; c += kLanes) {
      store(rows + t * args.head_dim + c, load(source + t * args.token_stride + c) * factor);
    }
  }
}

void pack_rows(const PackArgs& args, int64_t begin, int64_t end, float* rows) {
  args.type == Type::kFloat32 ? pack_rows_of<float>(args, begin, end, rows)
                              : pack_rows_of<BFloat16>(args, begin, end, rows);
}

template <class T>
void pack_columns_of(const PackArgs& args, const Tile& tile, float* columns) {
  const T* source = static_cast<const T*>(args.source) + tile.begin * args.token_stride;
  const int64_t width = padded(tile.count);
  float* out = columns + tile.columns * args.head_dim;
  for (int64_t t = 0; t < width; t += kLanes) {
    for (int64_t c = 0; c < args.head_dim; c += kLanes) {
      Vec square[kLanes] = {};
      for (int64_t i = 0; i < kLanes && t + i < tile.count; ++i) {
        square[i] = load(source + (t + i) * args.token_stride + c) * args.factor;
      }
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(out + (c + i) * width + t, square[i]);
    }
  }
}

void pack_columns(const PackArgs& args, const Tile& tile, float* columns) {
  args.type == Type::kFloat32 ? pack_columns_of<float>(args, tile, columns)
                              : pack_columns_of<BFloat16>(args, tile, columns);
}

template <class T>
void unpack_rows_to(const float* rows, int64_t count, int64_t head_dim, float factor, T* out, int64_t stride) {
  const Vec scale = broadcast(factor);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t c = 0; c < head_dim; c += kLanes) store(out + t * stride + c, load(rows + t * head_dim + c) * scale);
  }
}

void unpack_rows(const float* rows, int64_t count, int64_t head_dim, float factor, Type type, void* out,
                 int64_t stride) {
  type == Type::kFloat32 ? unpack_rows_to(rows, count, head_dim, factor, static_cast<float*>(out), stride)
                         : unpack_rows_to(rows, count, head_dim, factor, static_cast<BFloat16*>(out), stride);
}

// `rows` of the token range that starts at tile.begin, for the type of the output.
void write_tile(const float* rows, const Tile& tile, int64_t head_dim, Type type, void* out, int64_t stride) {
  const int64_t size = type == Type::kFloat32 ? 4 : 2;
  unpack_rows(rows, tile.count, head_dim, 1, type, static_cast<char*>(out) + tile.begin * stride * size, stride);
}

// The keys of a tile that one query sees: [begin, end) within the tile.
struct Visible {
  int64_t begin, end;
};

Visible visible(const AttentionShape& shape, const Tile& keys, int64_t query) {
  int64_t begin = 0, end = keys.count;
  if (shape.causal && query - keys.begin + 1 < end) end = query - keys.begin + 1;
  if (shape.window > 0 && query - shape.window + 1 - keys.begin > begin) begin = query - shape.window + 1 - keys.begin;
  if (end < 0) end = 0;
  return {begin < end ? begin : end, end};
}

bool all_visible(const AttentionShape& shape, const Tile& queries, const Tile& keys) {
  return keys.count == padded(keys.count) && (!shape.causal || keys.begin + keys.count - 1 <= queries.begin) &&
         (shape.window == 0 || queries.begin + queries.count - 1 - keys.begin < shape.window);
}

// Overwrites what the queries do not see, padding included, in a tile [queries.count, padded(keys.count)].
void hide(const AttentionShape& shape, const Tile& queries, const Tile& keys, float value, float* tile) {
  if (all_visible(shape, queries, keys)) return;
  const int64_t width = padded(keys.count);
  for (int64_t i = 0; i < queries.count; ++i, tile += width) {
    const Visible seen = visible(shape, keys, queries.begin + i);
    for (int64_t j = 0; j < seen.begin; ++j) tile[j] = value;
    for (int64_t j = seen.end; j < width; ++j) tile[j] = value;
  }
}

// Scores of a tile, soft-capped, before the mask.
void score_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const float* q_rows,
                const float* k_columns, float* scores) {
  const int64_t d = shape.head_dim, width = padded(keys.count);
  multiply<Layout::kRows>(q_rows + queries.begin * d, d, k_columns + keys.columns * d, width, scores, width,
                          queries.count, width, d, false);
  if (shape.softcap == 0) return;
  const Vec cap = broadcast(shape.softcap), inverse = broadcast(1 / shape.softcap);
  for (int64_t i = 0; i < queries.count * width; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * inverse));
}

// P = exp(scores - lse), 0 where hidden; `probs` may be `scores`.
void probs_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const float* lse,
                const float* scores, float* probs) {
  const int64_t width = padded(keys.count);
  for (int64_t i = 0; i < queries.count; ++i) {
    const Vec row_lse = broadcast(lse[queries.begin + i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) store(probs + j, exp(load(scores + j) - row_lse));
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

void leader_forward(const ForwardArgs& args) {
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
    score_tile(shape, queries, keys, args.q_rows, args.k_columns, scores);
    hide(shape, queries, keys, -kInfinity, scores);
    softmax_tile(queries.count, width, d, scores, out, state);
    multiply<Layout::kRows>(scores, width, args.v_rows + keys.begin * d, d, out, d, queries.count, d, keys.count, true);
  }
  for (int64_t i = 0; i < queries.count; ++i) {
    const float inverse = 1 / state.total[i];
    for (int64_t c = 0; c < d; c += kLanes) store(out + i * d + c, load(out + i * d + c) * inverse);
    args.lse[queries.begin + i] = state.maximum[i] + __builtin_logf(state.total[i]);
  }
  write_tile(out, queries, d, args.type, args.out, args.out_stride);
}

void follower_forward(const ForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& queries = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *probs = args.scratch, *out = probs + kTile * kTile;
  clear(out, queries.count * d);
  for (int64_t t = args.keys.first; t < args.keys.last; ++t) {
    const Tile& keys = shape.tiles[t];
    score_tile(shape, queries, keys, args.q_rows, args.k_columns, probs);
    probs_tile(shape, queries, keys, args.lse, probs, probs);
    multiply<Layout::kRows>(probs, padded(keys.count), args.v_rows + keys.begin * d, d, out, d, queries.count, d,
                            keys.count, true);
  }
  write_tile(out, queries, d, args.type, args.out, args.out_stride);
}

// dV (+)= P^T dO of one tile.
void add_value_gradient(const Tile& queries, const Tile& keys, int64_t d, const float* probs,
                        const float* grad_out_rows, float* dv) {
  multiply<Layout::kTransposed>(probs, padded(keys.count), grad_out_rows + queries.begin * d, d, dv, d, keys.count, d,
                                queries.count, true);
}

void value_backward(const ValueBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& keys = shape.tiles[args.tile];
  const int64_t d = shape.head_dim;
  float *probs = args.scratch, *dv = probs + kTile * kTile;
  clear(dv, keys.count * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    const ValueHead& head = args.heads[h];
    for (int64_t t = args.queries.first; t < args.queries.last; ++t) {
      const Tile& queries = shape.tiles[t];
      score_tile(shape, queries, keys, head.q_rows, head.k_columns, probs);
      probs_tile(shape, queries, keys, head.lse, probs, probs);
      add_value_gradient(queries, keys, d, probs, head.grad_out_rows, dv);
    }
  }
  write_tile(dv, keys, d, args.type, args.dv, args.dv_stride);
}

// dP of a tile, summed over the readers of the pattern.
void grad_probs_tile(const Tile& queries, const Tile& keys, int64_t d, const LeaderHead& head, float* dp) {
  const int64_t width = padded(keys.count);
  for (int64_t r = 0; r < head.reader_count; ++r) {
    const Reader& reader = head.readers[r];
    multiply<Layout::kRows>(reader.grad_out_rows + queries.begin * d, d, reader.v_columns + keys.columns * d, width, dp,
                            width, queries.count, width, d, r > 0);
  }
}

// dS = P (dP - delta), times the derivative of the soft-cap, into dp.
void grad_scores_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, const float* delta,
                      const float* scores, const float* probs, float* dp) {
  const int64_t width = padded(keys.count);
  const float inverse = shape.softcap == 0 ? 0 : 1 / shape.softcap;
  for (int64_t i = 0; i < queries.count; ++i) {
    const Vec row_delta = broadcast(delta[queries.begin + i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) {
      const Vec capped = load(scores + j) * inverse;
      store(dp + j,
            load(probs + j) * (load(dp + j) - row_delta) * (1.f - capped * capped));  // capped is 0 without soft-cap
    }
  }
}

void superblock_backward(const SuperblockBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const Tile& keys = shape.tiles[args.tile];
  const int64_t d = shape.head_dim, width = padded(keys.count);
  float *scores = args.scratch, *probs = scores + kTile * kTile, *ds = probs + kTile * kTile;
  float *dk = ds + kTile * kTile, *dv = dk + kTile * d;
  clear(dk, keys.count * d);
  clear(dv, keys.count * d);
  for (int64_t h = 0; h < args.head_count; ++h) {
    const LeaderHead& head = args.heads[h];
    for (int64_t t = args.queries.first; t < args.queries.last; ++t) {
      const Tile& queries = shape.tiles[t];
      score_tile(shape, queries, keys, head.q_rows, args.k_columns, scores);
      probs_tile(shape, queries, keys, head.lse, scores, probs);
      add_value_gradient(queries, keys, d, probs, head.readers[0].grad_out_rows, dv);
      grad_probs_tile(queries, keys, d, head, ds);
      grad_scores_tile(shape, queries, keys, head.delta, scores, probs, ds);
      multiply<Layout::kTransposed>(ds, width, head.q_rows + queries.begin * d, d, dk, d, keys.count, d, queries.count,
                                    true);
      multiply<Layout::kRows>(ds, width, args.k_rows + keys.begin * d, d, head.dq_rows + queries.begin * d, d,
                              queries.count, d, keys.count, true);
    }
  }
  write_tile(dk, keys, d, args.type, args.dk, args.stride);
  write_tile(dv, keys, d, args.type, args.dv, args.stride);
}

template <class T>
void row_dot_of(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t count, int64_t head_dim,
                float* out) {
  for (int64_t t = 0; t < count; ++t) {
    Vec total = {};
    for (int64_t c = 0; c < head_dim; c += kLanes) total += load(a + t * a_stride + c) * load(b + t * b_stride + c);
    out[t] = sum(total);
  }
}

void row_dot(const void* a, int64_t a_stride, const void* b, int64_t b_stride, Type type, int64_t count,
             int64_t head_dim, float* out) {
  if (type == Type::kFloat32) {
    row_dot_of(static_cast<const float*>(a), a_stride, static_cast<const float*>(b), b_stride, count, head_dim, out);
  } else {
    row_dot_of(static_cast<const BFloat16*>(a), a_stride, static_cast<const BFloat16*>(b), b_stride, count, head_dim,
               out);
  }
}

}  // namespace

void fill_attention(Kernels& table) {
  table.pack_rows = pack_rows;
  table.pack_columns = pack_columns;
  table.unpack_rows = unpack_rows;
  table.leader_forward = leader_forward;
  table.follower_forward = follower_forward;
  table.value_backward = value_backward;
  table.superblock_backward = superblock_backward;
  table.row_dot = row_dot;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
