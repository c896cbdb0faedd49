// Rotary embedding: a thread takes a vector of a head's first half and its counterpart in the second.
#pragma once
#include "cuda/layers_params.h"
#include "cuda/vector.cuh"

namespace uniattn::cuda {

template <typename T, int kVector>
struct Rotary {
  using Args = RotaryArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return grid_of_items(a.tokens * a.heads * (a.half / kVector)); }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    const int64_t vectors = a.half / kVector, row = thread_number() / vectors;
    const int64_t token = row / a.heads, head = row % a.heads, column = thread_number() % vectors * kVector;
    if (token >= a.tokens) return;
    const Element<T>* from = static_cast<const Element<T>*>(a.x) + token * a.token_stride + head * a.head_stride;
    Element<T>* to = static_cast<Element<T>*>(a.out) + row * 2 * a.half;
    float x[kVector], y[kVector], cos[kVector], sin[kVector];
    load_vector<T>(x, from + column);
    load_vector<T>(y, from + a.half + column);
    load_vector<float>(cos, a.cos + token * a.half + column);
    load_vector<float>(sin, a.sin + token * a.half + column);
    UNIATTN_UNROLL
    for (int i = 0; i < kVector; ++i) {
      const float first = x[i];
      x[i] = first * cos[i] - y[i] * sin[i];
      y[i] = y[i] * cos[i] + first * sin[i];
    }
    store_vector<T>(to + column, x);
    store_vector<T>(to + a.half + column, y);
  }
};

}  // namespace uniattn::cuda
