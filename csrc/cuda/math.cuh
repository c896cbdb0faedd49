// Functions of one number.
#pragma once
#include <cmath>

#include "cuda/device.cuh"

namespace uniattn::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

UNIATTN_DEVICE float exponential(float x) {
  return power_of_two(x * kLog2E);
}

// A score or logit between -softcap and softcap; softcap 0: as it is.
UNIATTN_DEVICE float soft_capped(float x, float softcap) {
  return softcap > 0 ? softcap * tanhf(x / softcap) : x;
}

// The derivative of soft_capped where it returned `capped`.
UNIATTN_DEVICE float softcap_slope(float capped, float softcap) {
  return softcap > 0 ? 1 - capped / softcap * (capped / softcap) : 1;
}

}  // namespace uniattn::cuda
