// Rows of memory as vectors of floats.
#pragma once
#include "cuda/device.cuh"

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

// kCount elements, one at a time, or, where they fill whole Words, from an address aligned to these.
template <typename T, int kCount>
UNIATTN_DEVICE void load_vector(float (&x)[kCount], const Element<T>* from) {
  constexpr int kStep = kCount % kPerWords<T> == 0 ? kPerWords<T> : 1;
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

}  // namespace uniattn::cuda
