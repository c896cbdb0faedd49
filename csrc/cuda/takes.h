// Which tensors the CUDA kernels take.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "cuda/launch.h"

namespace uniattn::cuda {

// Of the dtypes that the kernels of decoding and of layers take.
inline bool takes_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
}

// Attention of training and prefill over queries like q, whose shapes are checked elsewhere, and so many keys. Says
// once when it does not.
inline bool takes_attention(const at::Tensor& q, int64_t keys) {
  const bool half = q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16;
  if (half && q.dim() == 3 && has_kernels(q.size(2)) && keys <= kMaxTokens) return true;
  TORCH_WARN_ONCE(
      "uniattn: no CUDA kernel takes q ", q.sizes(), " of ", q.scalar_type(),
      "; attention out of PyTorch calls runs instead and is slower. Kernels take float16 and bfloat16 with a "
      "head_dim of 64, 96, 128 or 256.");
  return false;
}

}  // namespace uniattn::cuda
