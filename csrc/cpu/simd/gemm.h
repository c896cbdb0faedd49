// Small matrix products of tiles that live in cache: C [m, n] (+)= A B, float32, n a multiple of kColumnMultiple.
//
// The elements of A and B are float, or pairs of bfloat16 that one instruction multiplies and sums, or all is double. B
// is stored "paired", [k / kPair][n][kPair]: for float that is by rows. A is read one scalar (or pair) at a time and
// broadcast, so it may be stored by rows, [m][k], or paired, [k / kPair][m][kPair], at the same speed: no float tile is
// ever transposed. Where k is odd, the last pair is completed by zeros in both.
#pragma once
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {

// The accumulators of a step fill most of the registers and leave room for a row of B.
#if defined(__AVX512F__)
inline constexpr int kAccumulators = 24, kVectorsPerStep = 4;  // of 32 registers
#else
inline constexpr int kAccumulators = 8, kVectorsPerStep = 2;  // of 16
#endif

// float, or double where there is a vector of them.
template <class E>
struct Element {
  using Out = E;
  using Sum = decltype(load(static_cast<const E*>(nullptr)));
  static constexpr int64_t kPair = 1;
  static Sum row(const E* p) { return load(p); }
  static Sum repeated(const E* p) { return *p - Sum{}; }
  static Sum add_product(Sum sum, Sum a, Sum b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct Element<BFloat16> {
  using Out = float;
  using Sum = Vec;
  static constexpr int64_t kPair = 2;
  static Int row(const BFloat16* p) { return load_words(p); }
  static Int repeated(const BFloat16* p) { return Int{} + *reinterpret_cast<const LooseWord*>(p); }
  static Vec add_product(Vec sum, Int a, Int b) { return add_pair_products(sum, a, b); }
};
#endif

enum class Layout { kRows, kPaired };

template <class E>
using Out = typename Element<E>::Out;
template <class E>
inline constexpr int64_t kOutLanes = sizeof(typename Element<E>::Sum) / sizeof(Out<E>);  // columns of a vector

// C [rows, vectors * kOutLanes] (+)= A B, with the whole of A B in registers: they start at zero even where C is added
// to, because two ways to start make the compiler go through memory.
template <class E, Layout layout, int rows, int vectors>
inline void multiply_step(const E* a, int64_t lda, const E* b, int64_t ldb, Out<E>* c, int64_t ldc, int64_t k,
                          bool accumulate) {
  using Op = Element<E>;
  constexpr int64_t pair = Op::kPair;
  typename Op::Sum sum[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) sum[i][j] = typename Op::Sum{};
  }
  for (int64_t p = 0; p * pair < k; ++p) {
    decltype(Op::row(b)) row[vectors];
    for (int j = 0; j < vectors; ++j) row[j] = Op::row(b + (p * ldb + j * kOutLanes<E>)*pair);
    for (int i = 0; i < rows; ++i) {
      const auto factor = Op::repeated(layout == Layout::kRows ? a + i * lda + p * pair : a + (p * lda + i) * pair);
      for (int j = 0; j < vectors; ++j) sum[i][j] = Op::add_product(sum[i][j], factor, row[j]);
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) {
      Out<E>* out = c + i * ldc + j * kOutLanes<E>;
      store(out, accumulate ? load(out) + sum[i][j] : sum[i][j]);
    }
  }
}

// All rows of one strip of columns, as many at a time as fit; the rest in one smaller step where it can.
template <class E, Layout layout, int vectors, int rows>
inline void multiply_strip(const E* a, int64_t lda, const E* b, int64_t ldb, Out<E>* c, int64_t ldc, int64_t m,
                           int64_t k, bool accumulate) {
  const int64_t step = layout == Layout::kRows ? lda : Element<E>::kPair;
  int64_t i = 0;
  for (; i + rows <= m; i += rows) {
    multiply_step<E, layout, rows, vectors>(a + i * step, lda, b, ldb, c + i * ldc, ldc, k, accumulate);
  }
  if constexpr (rows > 1) {
    if (i < m) {
      constexpr int fewer = rows > 6 ? rows / 2 : rows - 1;
      multiply_strip<E, layout, vectors, fewer>(a + i * step, lda, b, ldb, c + i * ldc, ldc, m - i, k, accumulate);
    }
  }
}

// lda is the allocated k of an A by rows or the allocated m of a paired one, ldb the allocated n of B, ldc that of C.
template <class E, Layout layout, int vectors = kVectorsPerStep>
void multiply(const E* a, int64_t lda, const E* b, int64_t ldb, Out<E>* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
              bool accumulate) {
  constexpr int64_t wide = vectors * kOutLanes<E>;
  constexpr int rows = kAccumulators / vectors < 12 ? kAccumulators / vectors : 12;
  for (; n >= wide; n -= wide, b += wide * Element<E>::kPair, c += wide) {
    multiply_strip<E, layout, vectors, rows>(a, lda, b, ldb, c, ldc, m, k, accumulate);
  }
  if constexpr (vectors > 1) {
    if (n > 0) multiply<E, layout, vectors - 1>(a, lda, b, ldb, c, ldc, m, n, k, accumulate);
  }
}

}  // namespace uniattn::cpu::UNIATTN_ISA
