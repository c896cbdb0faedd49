// The forward kernels on tensors: what training and prefill share.
#pragma once
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "cuda/arguments.h"
#include "cuda/launch.h"

namespace uniattn::cuda {

// Attention [tokens, heads, head_dim] over v [keys, value heads, head_dim], on the current device. `new_lse` [heads,
// tokens] float32 is filled by a leader; null for a follower, whose pattern has lse.
inline at::Tensor run_forward(const PatternTensors& tensors, const std::optional<at::Tensor>& head_map,
                              const at::Tensor& v, float* new_lse) {
  const at::Tensor values = aligned(v), out = at::empty(tensors.q.sizes(), tensors.q.options());
  const at::Tensor map = head_map ? head_map->contiguous() : at::Tensor();
  C10_CUDA_CHECK(launch_forward({tensors.pattern, map.defined() ? map.const_data_ptr<int64_t>() : nullptr,
                                 values.const_data_ptr(), static_cast<int>(values.size(1)), out.data_ptr(), new_lse},
                                c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace uniattn::cuda
