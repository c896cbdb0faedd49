// Rows of memory as vectors of floats, and which of them a thread has.
#pragma once
#include <type_traits>

#include "cuda/block.cuh"

namespace uniattn::cuda {

// 16 bytes, read and written at once.
struct alignas(16) Words {
  uint32_t x[4];
};

template <typename T>
struct Storage {
  using Element = uint16_t;
};
template <>
struct Storage<float> {
  using Element = float;
};
template <typename T>
using Element = typename Storage<T>::Element;

template <typename T>
inline constexpr int kPerWords = sizeof(Words) / sizeof(Element<T>);

template <typename T>
UNIATTN_DEVICE float to_float(Element<T> x) {
  return low_half<T>(x);
}
template <>
UNIATTN_DEVICE float to_float<float>(float x) {
  return x;
}

template <typename T>
UNIATTN_DEVICE Element<T> from_float(float x) {
  return static_cast<uint16_t>(pack<T>(x, 0));
}
template <>
UNIATTN_DEVICE float from_float<float>(float x) {
  return x;
}

// What kCount elements are read and written by: one at a time, or Words where they fill these.
template <typename T, int kCount>
inline constexpr int kVectorStep = kCount % kPerWords<T> == 0 ? kPerWords<T> : 1;

// The address is aligned to what the elements are read or written by.
template <typename T, int kCount>
UNIATTN_DEVICE void load_vector(float (&x)[kCount], const Element<T>* from) {
  constexpr int kStep = kVectorStep<T, kCount>;
  UNIATTN_UNROLL
  for (int first = 0; first < kCount; first += kStep) {
    Element<T> elements[kStep];
    if constexpr (kStep == 1) {
      elements[0] = from[first];
    } else {
      const Words words = *reinterpret_cast<const Words*>(from + first);
      memcpy(elements, words.x, sizeof(words));
    }
    UNIATTN_UNROLL
    for (int i = 0; i < kStep; ++i) x[first + i] = to_float<T>(elements[i]);
  }
}

// Elements that fill Words, as these.
template <typename T>
UNIATTN_DEVICE Words to_words(const float* x) {
  return {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
}
template <>
UNIATTN_DEVICE Words to_words<float>(const float* x) {
  Words words;
  memcpy(words.x, x, sizeof(words));
  return words;
}

template <typename T, int kCount>
UNIATTN_DEVICE void store_vector(Element<T>* to, const float (&x)[kCount]) {
  constexpr int kStep = kVectorStep<T, kCount>;
  UNIATTN_UNROLL
  for (int first = 0; first < kCount; first += kStep) {
    if constexpr (kStep == 1) {
      to[first] = from_float<T>(x[first]);
    } else {
      store_words(to + first, to_words<T>(x + first).x);
    }
  }
}

// Calls f(column) for the first column of each vector of a row's [begin, end) that this thread of the block has.
template <int kVector, typename F>
UNIATTN_DEVICE void for_own_columns(int64_t begin, int64_t end, F f) {
  for (int64_t column = begin + thread_index() * kVector; column < end; column += kThreads * kVector) f(column);
}

// Of `count` elements, a vector per thread of grid_of_vectors: calls f(first, size), size a constant, once for a whole
// vector and for each element of one that is cut off.
template <int kVector>
Grid grid_of_vectors(int64_t count) {
  return grid_of_items((count + kVector - 1) / kVector);
}
template <int kVector, typename F>
UNIATTN_DEVICE void for_own_elements(int64_t count, F f) {
  const int64_t begin = thread_number() * kVector;
  if (begin + kVector <= count) return f(begin, std::integral_constant<int, kVector>());
  for (int64_t i = begin; i < count; ++i) f(i, std::integral_constant<int, 1>());
}

}  // namespace uniattn::cuda
