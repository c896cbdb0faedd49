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

// The first token of one head of x [tokens, heads, head_dim].
inline void* head_data(const at::Tensor& x, int64_t head) {
  return static_cast<char*>(x.data_ptr()) + head * x.stride(1) * x.element_size();
}

}  // namespace uniattn::cpu
