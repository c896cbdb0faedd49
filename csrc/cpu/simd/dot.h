// Inner products of long rows, summed in float32. Pairs of bfloat16 are multiplied and summed in one instruction where
// there is one.
#pragma once
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {

// Elements of T that one step of an inner product takes, and the step.
template <class T>
struct Dot {
  static constexpr int64_t kStep = kLanes;
  static Vec row(const T* p) { return load(p); }
  static Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<BFloat16> {
  static constexpr int64_t kStep = 2 * kLanes;
  static Int row(const BFloat16* p) { return load_words(p); }
  static Vec add(Vec sum, Int a, Int b) { return add_pair_products(sum, a, b); }
};
#endif

// sum[i][j] += row i of a times row j of b over the whole steps of the depth; rows lie `depth` apart. The loops are
// unrolled by force: only then do the sums stay in registers.
template <class T, int a_rows, int b_rows>
inline void add_products(const T* a, const T* b, int64_t depth, Vec (&sum)[a_rows][b_rows]) {
  for (int64_t c = 0; c + Dot<T>::kStep <= depth; c += Dot<T>::kStep) {
    decltype(Dot<T>::row(a)) left[a_rows];
#pragma GCC unroll 4
    for (int i = 0; i < a_rows; ++i) left[i] = Dot<T>::row(a + i * depth + c);
#pragma GCC unroll 16
    for (int j = 0; j < b_rows; ++j) {
      const auto right = Dot<T>::row(b + j * depth + c);
#pragma GCC unroll 4
      for (int i = 0; i < a_rows; ++i) sum[i][j] = Dot<T>::add(sum[i][j], left[i], right);
    }
  }
}

// What add_products leaves of one inner product. Not inline: its code would crowd out that of the steps.
template <class T>
[[gnu::noinline]] float rest_of_product(const T* a, const T* b, int64_t depth) {
  Vec total = {};
  for (int64_t c = depth / Dot<T>::kStep * Dot<T>::kStep; c < depth; c += kLanes) {
    total += load(a + c, depth - c) * load(b + c, depth - c);
  }
  return sum(total);
}

// Lane j is the inner product of `a` with row j of b [kLanes, depth].
template <class T>
inline Vec dots(const T* a, const T* b, int64_t depth) {
  Vec total[1][kLanes] = {};
  add_products(a, b, depth, total);
  Vec result = lane_sums(total[0]);
  if (depth % Dot<T>::kStep != 0) {
    for (int j = 0; j < kLanes; ++j) result[j] += rest_of_product(a, b + j * depth, depth);
  }
  return result;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
