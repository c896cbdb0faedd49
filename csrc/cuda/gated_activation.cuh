// Gated activation: a vector per thread.
#pragma once
#include "cuda/layers_params.h"
#include "cuda/math.cuh"
#include "cuda/vector.cuh"

namespace uniattn::cuda {

// An activation and its derivative at x.
struct Activated {
  float value, slope;
};

UNIATTN_DEVICE Activated silu(float x) {
  const float s = 1 / (1 + exponential(-x));
  return {x * s, s * (1 + x * (1 - s))};
}

UNIATTN_DEVICE Activated gelu_tanh(float x) {
  constexpr float kRoot = 0.7978845608f, kCubic = 0.044715f;  // sqrt(2 / pi)
  const float t = tanhf(kRoot * (x + kCubic * x * x * x));
  return {0.5f * x * (1 + t), 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kRoot * (1 + 3 * kCubic * x * x)};
}

UNIATTN_DEVICE Activated activate(Activation activation, float x) {
  return activation == Activation::kSilu ? silu(x) : gelu_tanh(x);
}

template <typename T, int kVector>
struct GatedActivation {
  using Args = GatedActivationArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return grid_of_vectors<kVector>(a.count); }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    for_own_elements<kVector>(a.count, [&](int64_t first, auto size) {
      constexpr int kCount = decltype(size)::value;
      float gate[kCount], up[kCount];
      load_vector<T>(gate, static_cast<const Element<T>*>(a.gate) + first);
      load_vector<T>(up, static_cast<const Element<T>*>(a.up) + first);
      UNIATTN_UNROLL
      for (int i = 0; i < kCount; ++i) up[i] *= activate(a.activation, gate[i]).value;
      store_vector<T>(static_cast<Element<T>*>(a.out) + first, up);
    });
  }
};

template <typename T, int kVector>
struct GatedActivationBackward {
  using Args = GatedActivationBackwardArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return grid_of_vectors<kVector>(a.count); }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    for_own_elements<kVector>(a.count, [&](int64_t first, auto size) {
      constexpr int kCount = decltype(size)::value;
      float grad[kCount], gate[kCount], up[kCount];
      load_vector<T>(grad, static_cast<const Element<T>*>(a.grad) + first);
      load_vector<T>(gate, static_cast<const Element<T>*>(a.gate) + first);
      load_vector<T>(up, static_cast<const Element<T>*>(a.up) + first);
      UNIATTN_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const Activated activated = activate(a.activation, gate[i]);
        gate[i] = grad[i] * up[i] * activated.slope;
        up[i] = grad[i] * activated.value;
      }
      store_vector<T>(static_cast<Element<T>*>(a.dgate) + first, gate);
      store_vector<T>(static_cast<Element<T>*>(a.dup) + first, up);
    });
  }
};

}  // namespace uniattn::cuda
