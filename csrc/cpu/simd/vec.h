// One SIMD vector of floats as wide as the instruction set this file is compiled for, and the functions the kernels
// need.
//
// Files that include this are compiled once per instruction set. Everything lives in a namespace of that instruction
// set, and no template of the standard library may be instantiated here: the linker would be free to use its AVX-512
// code everywhere.
#pragma once
#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#ifndef UNIATTN_ISA
#error "UNIATTN_ISA names the instruction set: see cmake/CpuKernels.cmake"
#endif

namespace uniattn::cpu::UNIATTN_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using Int = int32_t __attribute__((vector_size(kLanes * 4)));
// Loads and stores need no alignment and may alias any type.
using LooseVec = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using Half = uint16_t __attribute__((vector_size(kLanes * 2)));
using LooseHalf = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
using Bits = uint32_t __attribute__((vector_size(kLanes * 4)));

using LooseInt = int32_t __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
using LooseWord = int32_t __attribute__((aligned(2), may_alias));

// The bits of a bfloat16.
struct BFloat16 {
  uint16_t bits;
};

inline Vec broadcast(float x) {
  return x - Vec{};
}
inline Vec load(const float* p) {
  return *reinterpret_cast<const LooseVec*>(p);
}
inline void store(float* p, Vec x) {
  *reinterpret_cast<LooseVec*>(p) = x;
}

// The bits of consecutive bfloat16, one to a lane.
inline Bits load_bits(const BFloat16* p) {
  return __builtin_convertvector(static_cast<Half>(*reinterpret_cast<const LooseHalf*>(p)), Bits);
}
inline Vec load(const BFloat16* p) {
  return reinterpret_cast<Vec>(load_bits(p) << 16);
}
// The bits of x as bfloat16 in the upper halves, rounded to nearest even; a NaN stays one. The lower halves are
// garbage.
inline Bits rounded_bits(Vec x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return x == x ? rounded : bits | 0x400000;
}
inline void store(BFloat16* p, Vec x) {
#if defined(__AVX512BF16__)
  *reinterpret_cast<LooseHalf*>(p) = reinterpret_cast<Half>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  *reinterpret_cast<LooseHalf*>(p) = __builtin_convertvector(rounded_bits(x) >> 16, Half);
#endif
}

#if defined(__AVX512F__)
using DoubleVec = double __attribute__((vector_size(kLanes * 4)));
using LooseDoubleVec = double __attribute__((vector_size(kLanes * 4), aligned(8), may_alias));

inline DoubleVec load(const double* p) {
  return *reinterpret_cast<const LooseDoubleVec*>(p);
}
inline void store(double* p, DoubleVec x) {
  *reinterpret_cast<LooseDoubleVec*>(p) = x;
}
#endif

// Words of 32 bits, whatever they hold: a float or two bfloat16.
template <class T>
inline Int load_words(const T* p) {
  return *reinterpret_cast<const LooseInt*>(p);
}
template <class T>
inline void store_words(T* p, Int words) {
  *reinterpret_cast<LooseInt*>(p) = words;
}
// Lane i holds the bfloat16 of `first` and, above it, that of `second`.
inline Int paired(Vec first, Vec second) {
#if defined(__AVX512BF16__)
  const Half low = reinterpret_cast<Half>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(first)));
  const Half high = reinterpret_cast<Half>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second)));
  return reinterpret_cast<Int>(__builtin_convertvector(low, Bits) | (__builtin_convertvector(high, Bits) << 16));
#else
  return reinterpret_cast<Int>((rounded_bits(first) >> 16) | (rounded_bits(second) & 0xffff0000u));
#endif
}
#if defined(__AVX512BF16__)
using BFloat16s = uint16_t __attribute__((vector_size(kLanes * 4)));

// Word i holds bfloat16 i of `first` and, above it, that of `second`, of their lower or upper halves.
inline Int paired_low(Int first, Int second) {
  return reinterpret_cast<Int>(__builtin_shufflevector(
      reinterpret_cast<BFloat16s>(first), reinterpret_cast<BFloat16s>(second), 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37,
      6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47));
}
inline Int paired_high(Int first, Int second) {
  return reinterpret_cast<Int>(__builtin_shufflevector(
      reinterpret_cast<BFloat16s>(first), reinterpret_cast<BFloat16s>(second), 16, 48, 17, 49, 18, 50, 19, 51, 20, 52,
      21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63));
}
// sum + a.first * b.first + a.second * b.second, lane by lane.
inline Vec add_pair_products(Vec sum, Int a, Int b) {
  return reinterpret_cast<Vec>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}
#endif

inline float load_one(const float* p) {
  return *p;
}
inline float load_one(const BFloat16* p) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(p->bits) << 16);
}
inline void store_one(float* p, float x) {
  *p = x;
}
inline void store_one(BFloat16* p, float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  p->bits = static_cast<uint16_t>(x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40);
}

// The first `count` lanes, for the end of a row; the others are 0.
template <class T>
inline Vec load(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Vec x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = load_one(p + i);
  return x;
}
template <class T>
inline void store(T* p, Vec x, int64_t count) {
  if (count >= kLanes) return store(p, x);
  for (int64_t i = 0; i < count; ++i) store_one(p + i, x[i]);
}

inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

// The numbers of all lanes, from which shuffles make their indices at compile time: indices that are filled in by a
// loop would be computed again and again.
template <int... lane>
struct Lanes {};
#if defined(__AVX512F__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Lane i of the result is lane i ^ distance of x.
template <int distance, int... lane>
inline Vec swap_lanes(Vec x, Lanes<lane...>) {
  return __builtin_shufflevector(x, x, (lane ^ distance)...);
}
template <int distance = kLanes / 2>
inline float sum(Vec x) {
  x += swap_lanes<distance>(x, AllLanes());
  if constexpr (distance > 1) return sum<distance / 2>(x);
  return x[0];
}
template <int distance = kLanes / 2>
inline float largest(Vec x) {
  x = max(x, swap_lanes<distance>(x, AllLanes()));
  if constexpr (distance > 1) return largest<distance / 2>(x);
  return x[0];
}

// Lanes without the bit `half` are those of `first` plus its lanes half further, the others the same of `second`.
template <int half, int... lane>
inline Vec fold(Vec first, Vec second, Lanes<lane...>) {
  return __builtin_shufflevector(first, second, (lane & half ? lane + kLanes : lane)...) +
         __builtin_shufflevector(first, second, ((lane ^ half) + (lane & half ? kLanes : 0))...);
}
// Lane i of the result is the sum of rows[i], which are overwritten: each round folds every row and keeps two in one.
template <int half = kLanes / 2>
inline Vec lane_sums(Vec* rows) {
#pragma GCC unroll 8
  for (int i = 0; i < half; ++i) rows[i] = fold<half>(rows[i], rows[i + half], AllLanes());
  if constexpr (half > 1) return lane_sums<half / 2>(rows);
  return rows[0];
}

// The lower and the upper halves of two rows, interleaved.
template <int... lane>
inline Int interleave_low(Int first, Int second, Lanes<lane...>) {
  return __builtin_shufflevector(first, second, (lane / 2 + lane % 2 * kLanes)...);
}
template <int... lane>
inline Int interleave_high(Int first, Int second, Lanes<lane...>) {
  return __builtin_shufflevector(first, second, (lane / 2 + lane % 2 * kLanes + kLanes / 2)...);
}
// Row i of a square becomes its column i: each of the log2(kLanes) rounds interleaves the upper with the lower half of
// the rows.
inline void transpose(Int (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    Int next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2], AllLanes());
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2], AllLanes());
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// exp(x) = 2^n e^r with |r| <= ln 2 / 2.
inline constexpr float kSmallest = -87.33654f;  // below it the result would be denormal
inline constexpr float kLargest = 88.3f;        // above it n would be 128, and 2^128 is not a float

struct ExpParts {
  Vec power;  // 2^n
  Vec rest;   // e^r - 1
};

// Garbage for x outside [kSmallest, kLargest].
inline ExpParts exp_parts(Vec x) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Bits exponent = (reinterpret_cast<Bits>(shifted) << 23) + 0x3f800000u;
  return {reinterpret_cast<Vec>(exponent), p * r * r + r};
}

// 0 below kSmallest; x must not be above kLargest.
inline Vec exp(Vec x) {
  const ExpParts parts = exp_parts(x);
  const Vec result = parts.power * parts.rest + parts.power;
  return x < kSmallest ? Vec{} : result;
}

// tanh(x) = (e^2x - 1) / (e^2x + 1), exact to rounding near 0 because e^r - 1 is never formed by a subtraction there.
inline Vec tanh(Vec x) {
  x = x > 10.f ? broadcast(10.f) : x;
  x = x < -10.f ? broadcast(-10.f) : x;
  const ExpParts parts = exp_parts(2.f * x);
  const Vec minus_one = parts.power * parts.rest + (parts.power - 1.f);
  return minus_one / (minus_one + 2.f);
}

inline Vec sigmoid(Vec x) {
  return 1.f / (1.f + exp(x < -kLargest ? broadcast(kLargest) : -x));
}

}  // namespace uniattn::cpu::UNIATTN_ISA
