// Small matrix products of float32 tiles that live in cache: C [m, n] (+)= A B with B [k, n] by rows.
//
// A is read one scalar at a time and broadcast, so it may be stored by rows or transposed at the same speed: no tile of
// the backward pass ever has to be transposed. n is a multiple of kColumns.
#pragma once
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {

inline constexpr int64_t kColumns = 16;  // the same for all instruction sets, so that the callers pad alike

#if defined(__AVX512F__)
inline constexpr int kRowsPerStep = 6, kVectorsPerStep = 4;  // 24 of 32 registers accumulate
#else
inline constexpr int kRowsPerStep = 4, kVectorsPerStep = 2;  // 8 of 16, and room for what is loaded
#endif

enum class Layout { kRows, kTransposed };  // A [m, k], or A [k, m]

// C [rows, vectors * kLanes] (+)= A B, with the whole of C in registers.
template <int rows, int vectors, Layout layout>
inline void multiply_step(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k,
                          bool accumulate) {
  Vec sum[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) sum[i][j] = accumulate ? load(c + i * ldc + j * kLanes) : Vec{};
  }
  for (int64_t p = 0; p < k; ++p) {
    Vec row[vectors];
    for (int j = 0; j < vectors; ++j) row[j] = load(b + p * ldb + j * kLanes);
    for (int i = 0; i < rows; ++i) {
      const Vec factor = broadcast(layout == Layout::kRows ? a[i * lda + p] : a[p * lda + i]);
      for (int j = 0; j < vectors; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) store(c + i * ldc + j * kLanes, sum[i][j]);
  }
}

// All rows of one strip of columns.
template <int vectors, Layout layout, int rows = kRowsPerStep>
inline void multiply_strip(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                           int64_t k, bool accumulate) {
  const int64_t step = layout == Layout::kRows ? lda : 1;
  int64_t i = 0;
  for (; i + rows <= m; i += rows) {
    multiply_step<rows, vectors, layout>(a + i * step, lda, b, ldb, c + i * ldc, ldc, k, accumulate);
  }
  if constexpr (rows > 1) {
    if (i < m) {
      multiply_strip<vectors, layout, rows / 2>(a + i * step, lda, b, ldb, c + i * ldc, ldc, m - i, k, accumulate);
    }
  }
}

template <Layout layout>
void multiply(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
              int64_t k, bool accumulate) {
  constexpr int64_t wide = kVectorsPerStep * kLanes;
  int64_t j = 0;
  for (; j + wide <= n; j += wide)
    multiply_strip<kVectorsPerStep, layout>(a, lda, b + j, ldb, c + j, ldc, m, k, accumulate);
  for (; j < n; j += kColumns) {
    multiply_strip<kColumns / kLanes, layout>(a, lda, b + j, ldb, c + j, ldc, m, k, accumulate);
  }
}

}  // namespace uniattn::cpu::UNIATTN_ISA
