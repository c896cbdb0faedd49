// The CPU kernels as one table of functions per instruction set; kernels() is the best one that this processor runs.
//
// The functions take plain pointers and parameter structs, work on one tile or a few rows, and never allocate: threads,
// memory and checks are the caller's. Functions in this header are static: compiled for several instruction sets, one
// shared copy might be the wrong one.
#pragma once
#include <cstdint>

namespace uniattn::cpu {

inline constexpr int64_t kTile = 64;            // tokens in a tile
inline constexpr int64_t kColumnMultiple = 16;  // a product's columns: head_dim and padded tiles are multiples of it
inline constexpr int64_t kMaxHeadDim = 256;

enum class Type { kFloat32, kBFloat16 };

// Up to kTile tokens of one sequence: a block of query rows, of keys, or both.
struct Tile {
  int64_t begin, count;
  int64_t sequence_begin, sequence_end;  // tokens
  int64_t offset;  // where the tile starts in a packed copy, in tokens; each is padded(count) there
  // As queries: P of a head, where it is kept in the type of the outputs, has the block of this tile and a tile of
  // keys, [count][padded(keys.count)], at blocks + count * keys.offset. The blocks of a tile lie one behind the other.
  int64_t blocks;
};

// `count` rounded up to what a matrix product's columns need.
static inline int64_t padded(int64_t count) {
  return (count + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple;
}

// Packed copies of one head hold tile t at tiles[t].offset * head_dim, in one of three layouts. Their elements are
// float32, or bfloat16 (kPair = 2, for float32 it is 1) where the processor multiplies them.
enum class Packing {
  kRows,     // [count][head_dim]
  kPaired,   // [count / kPair][head_dim][kPair], a last odd token is completed by zeros
  kColumns,  // [head_dim / kPair][padded(count)][kPair], zeros behind the last token
};

struct PackArgs {
  const void* source;  // one head of a tensor [tokens, heads, head_dim] with contiguous head_dim
  int64_t token_stride;
  int64_t head_dim;
  Type type;    // of the source
  Type packed;  // of the copy
  Packing packing;
};

struct AttentionShape {
  const Tile* tiles;
  int64_t head_dim;
  bool causal;
  int64_t window;  // 0: off
  float softcap;   // 0: off
  float scale;
  Type type;    // of outputs
  Type packed;  // of packed copies
};

// A range [first, last) of tiles.
struct TileRange {
  int64_t first, last;
};

// Attention of one tile of query rows of one head over the tiles `keys`.
struct ForwardArgs {
  AttentionShape shape;
  int64_t tile;
  TileRange keys;
  const void *q_rows, *k_columns;  // null for a follower of a kept P
  const void* v_paired;
  float* lse;  // [tokens] of the head: written by the leader, read by a follower
  void* kept;  // P of the head, written by the leader, read by a follower; null: not kept
  void* out;   // the head's first token
  int64_t out_stride;
  float* scratch;  // forward_scratch(head_dim, tiles in keys, or 0 where the leader keeps no P) floats
};
static inline int64_t forward_scratch(int64_t head_dim, int64_t key_tiles) {
  return kTile * (kTile + head_dim + kTile * key_tiles);
}

// What one query head reads of P and adds to dV.
struct ValueHead {
  const void *q_rows, *k_columns;  // null where P is kept
  const float* lse;
  const void* kept;  // P of the head; null: rebuilt
  const void* grad_out_paired;
};

// dV of one tile of keys of one KV head of a layer: the sum over the layer's query heads of that group and over
// `queries`.
struct ValueBackwardArgs {
  AttentionShape shape;
  int64_t tile;
  TileRange queries;
  const ValueHead* heads;
  int64_t head_count;
  void* dv;  // the KV head's first token
  int64_t dv_stride;
  float* scratch;  // value_backward_scratch(head_dim) floats
};
static inline int64_t value_backward_scratch(int64_t head_dim) {
  return kTile * (kTile + head_dim);
}

// dP of a leader's head is the sum of these products, grad_out v^T, one per query head of any layer that reads its
// pattern.
struct Reader {
  const void *grad_out_rows, *v_columns;
};

struct LeaderHead {
  const void *q_rows, *q_paired, *grad_out_paired;
  const float *lse, *delta;  // delta [tokens], summed over the readers
  const void* kept;          // P of the head; null: rebuilt
  const Reader* readers;
  int64_t reader_count;
  float* dq;  // float32, packed by rows, without the scale: added to
};

// The part of a superblock's gradient that belongs to a few tiles of keys of one KV head, backward_tiles(head_dim) at
// most: what is read of a tile of queries is read once for all of them.
struct SuperblockBackwardArgs {
  AttentionShape shape;
  TileRange tiles;
  const TileRange* queries;          // of each tile
  const void *k_paired, *k_columns;  // k_columns and the heads' q_rows: null where P is kept without soft-cap
  const LeaderHead* heads;
  int64_t head_count;
  void *dk, *dv;  // the KV head's first token
  int64_t stride;
  float* scratch;  // superblock_backward_scratch(head_dim) floats
};
static inline int64_t backward_tiles(int64_t head_dim) {
  return head_dim < 256 ? 256 / head_dim : 1;  // their values, of all layers, stay in the second-level cache
}
static inline int64_t superblock_backward_scratch(int64_t head_dim) {
  return kTile * (4 * kTile + 2 * head_dim * backward_tiles(head_dim));
}

enum class Activation { kSilu, kGeluTanh };

struct RmsNormArgs {
  const void *x, *weight;  // x [rows, width] contiguous
  int64_t width;
  bool unit_offset;
  Type type;
  float* rstd;  // [rows]
};

struct RotaryArgs {
  const void* x;  // [tokens, heads, head_dim] with contiguous head_dim
  int64_t token_stride, head_stride, heads, head_dim;
  const float *cos, *sin;  // [tokens, head_dim / 2] contiguous
  Type type;
  void* out;  // [tokens, heads, head_dim] contiguous
};

// A block of logits of linear + cross-entropy, before the soft-cap: [rows, vocabulary] contiguous.
struct LogitsArgs {
  void* logits;
  int64_t rows, vocabulary;
  Type type;
  float softcap;          // 0: off
  const int64_t* labels;  // [rows]
  float* lse;             // [rows]: written forward, read backward
};

// One sequence's share of a cache [pages, kv_heads, page_size, head_dim]: its page p is pages[p % slots].
struct CachedHeads {
  const void* data;
  const int32_t* pages;
  int64_t slots, kv_heads, page_size, head_dim;
  Type type;
};

// What the newest token of a sequence takes from the positions [begin, end): a split of those that it sees. Column 0 of
// its heads' rows of P is the first position of page first_page.
struct DecodeArgs {
  CachedHeads k, v;  // k: the leader's
  const void* q;     // [heads, head_dim] contiguous, the leader's
  int64_t heads, begin, end, first_page;
  float scale, softcap;  // softcap 0: off
  // Per query head the row that it reads, [columns], whole pages. The leader leaves exp(score - maximum) in the split's
  // pages, 0 where nothing is seen, and the maximum and the sum.
  float* const* rows;
  float *maximum, *total;  // [heads]
  float* out;              // [heads, head_dim]: sum of weight times value
};

// The splits of one query head brought together.
struct DecodeMergeArgs {
  int64_t splits, head_dim;
  const float* out;              // of split s at s * out_stride
  const float *maximum, *total;  // of split s at s * statistic_stride; null for a follower, whose splits are added
  int64_t out_stride, statistic_stride;
  Type type;
  void* result;        // [head_dim]
  float* row;          // becomes P; null where nobody asks for it
  int64_t split_size;  // columns of the row in a split, but for the last
  int64_t columns;
};

// x W^T for a few rows, W read once. out [rows, width] float32 or bfloat16 like x.
struct StreamingLinearArgs {
  const void *x, *weight;  // [rows, depth], [width, depth], both contiguous
  int64_t rows, depth, width;
  Type type;
  void* out;
};

// x W^T in float64. out [rows, width], width a multiple of kDoubleColumns.
struct DoubleLinearArgs {
  const double *x, *weight;  // [rows, depth], [width, depth], both contiguous
  int64_t rows, depth, width;
  double* out;
};
inline constexpr int64_t kDoubleColumns = 8;
inline constexpr int64_t kDoubleStrip = 32;  // columns of the result that are best computed together

struct Kernels {
  bool multiplies_bfloat16;  // whether packed copies may be bfloat16
  // Copies one tile of a head; `packed` is the head's copy.
  void (*pack)(const PackArgs&, const Tile&, void* packed);
  // The tile's rows of a float32 copy times `factor`, back to a head of [tokens, heads, head_dim] whose first token is
  // `out`.
  void (*unpack)(const float* packed, const Tile&, int64_t head_dim, float factor, Type type, void* out,
                 int64_t stride);
  void (*leader_forward)(const ForwardArgs&);
  void (*follower_forward)(const ForwardArgs&);
  void (*value_backward)(const ValueBackwardArgs&);
  void (*superblock_backward)(const SuperblockBackwardArgs&);
  // out [heads, tokens]: sum over head_dim of a * b for tokens [begin, end); a and b [tokens, heads, head_dim]
  // contiguous.
  void (*row_dot)(const void* a, const void* b, Type type, int64_t tokens, int64_t heads, int64_t head_dim,
                  int64_t begin, int64_t end, float* out);
  // Rows [begin, end). The gradient of the weight, float32 [width], is added to `dweight`.
  void (*rms_norm_forward)(const RmsNormArgs&, double eps, void* y, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const RmsNormArgs&, const void* grad, void* dx, float* dweight, int64_t begin, int64_t end);
  // Tokens [begin, end).
  void (*rotary)(const RotaryArgs&, int64_t begin, int64_t end);
  // Elements [begin, end) of contiguous tensors.
  void (*gated_activation)(const void* gate, const void* up, Activation, Type, void* out, int64_t begin, int64_t end);
  void (*gated_activation_backward)(const void* grad, const void* gate, const void* up, Activation, Type, void* dgate,
                                    void* dup, int64_t begin, int64_t end);
  // loss [rows] = lse - the label's logit.
  void (*cross_entropy_forward)(const LogitsArgs&, float* loss);
  // Overwrites the logits with the gradient of sum(grad * loss), grad [rows].
  void (*cross_entropy_backward)(const LogitsArgs&, const float* grad);
  void (*decode_leader)(const DecodeArgs&);
  void (*decode_follower)(const DecodeArgs&);
  void (*decode_merge)(const DecodeMergeArgs&);
  // Columns [begin, end) of the result.
  void (*streaming_linear)(const StreamingLinearArgs&, int64_t begin, int64_t end);
  // Columns [begin, end) of the result, multiples of kDoubleColumns. Null without AVX-512.
  void (*double_linear)(const DoubleLinearArgs&, int64_t begin, int64_t end);
};

const Kernels& kernels();

}  // namespace uniattn::cpu
