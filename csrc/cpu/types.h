// Which tensors the CPU kernels take.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/kernels.h"

namespace uniattn::cpu {

inline bool is_supported(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

inline Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? Type::kFloat32 : Type::kBFloat16;
}

}  // namespace uniattn::cpu
