// P of one tile of queries and one tile of keys: rebuilt from scores, or where it is kept. Elements E of products are
// float, or pairs of bfloat16; softmax and sums are float32 in both cases.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/mask.h"
#include "cpu/simd/pack.h"

namespace uniattn::cpu::UNIATTN_ISA {

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

// P = exp(factor * scores - lse), 0 where hidden; `probs` may be `scores`. In bfloat16 it is rounded where it becomes
// an operand; where operands are float it is rounded here, so that a P that was kept has the same bits.
inline void probs_tile(const AttentionShape& shape, const Tile& queries, const Tile& keys, float factor,
                       const float* lse, const float* scores, float* probs) {
  const int64_t width = padded(keys.count);
  const bool round = shape.type == Type::kBFloat16 && shape.packed == Type::kFloat32;
  for (int64_t i = 0; i < queries.count; ++i) {
    const Vec row_lse = broadcast(lse[queries.begin + i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) {
      const Vec p = exp(load(scores + j) * factor - row_lse);
      store(probs + j, round ? reinterpret_cast<Vec>(rounded_bits(p) & 0xffff0000u) : p);
    }
  }
  hide(shape, queries, keys, 0, probs);
}

// Where the block of P of two tiles is kept. T is the type of the outputs.
template <class T>
T* kept_block(void* kept, const Tile& queries, const Tile& keys) {
  return static_cast<T*>(kept) + queries.blocks + queries.count * keys.offset;
}
template <class T>
const T* kept_block(const void* kept, const Tile& queries, const Tile& keys) {
  return static_cast<const T*>(kept) + queries.blocks + queries.count * keys.offset;
}

// A kept block as elements of a product, by rows. Bfloat16 that the processor does not multiply goes to `buffer`.
template <class E>
const E* kept_rows(const AttentionShape& shape, const void* kept, const Tile& queries, const Tile& keys,
                   float* buffer) {
  if constexpr (sizeof(E) == sizeof(float)) {
    if (shape.type == Type::kFloat32) return kept_block<float>(kept, queries, keys);
    const BFloat16* block = kept_block<BFloat16>(kept, queries, keys);
    for (int64_t i = 0; i < queries.count * padded(keys.count); i += kLanes) store(buffer + i, load(block + i));
    return buffer;
  } else {
    return kept_block<E>(kept, queries, keys);
  }
}

// Down a column of blocks the processor does not foresee the next one.
inline void prefetch_kept(const AttentionShape& shape, const void* kept, const Tile& queries, const Tile& keys) {
  const int64_t size = shape.type == Type::kFloat32 ? 4 : 2;
  const char* block = static_cast<const char*>(kept) + (queries.blocks + queries.count * keys.offset) * size;
  for (int64_t i = 0; i < queries.count * padded(keys.count) * size; i += 64) __builtin_prefetch(block + i, 0, 2);
}

inline void clear(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

// The instance of a kernel for the elements of the packed copies.
#if defined(__AVX512BF16__)
#define UNIATTN_FOR_ELEMENTS(kernel, Args)                                                        \
  void kernel(const Args& args) {                                                                 \
    args.shape.packed == Type::kFloat32 ? kernel##_of<float>(args) : kernel##_of<BFloat16>(args); \
  }
#else
#define UNIATTN_FOR_ELEMENTS(kernel, Args) \
  void kernel(const Args& args) {          \
    kernel##_of<float>(args);              \
  }
#endif

}  // namespace uniattn::cpu::UNIATTN_ISA
