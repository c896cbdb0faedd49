// The CUDA kernels of linear + cross-entropy as operators; dtypes that they do not take go to the composite. Which
// tokens are supervised is read back, and their labels are checked, before anything is launched.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/composite.h"
#include "cuda/chunked_cross_entropy.h"
#include "cuda/launch.h"
#include "cuda/takes.h"

namespace uniattn::cuda {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& labels, double softcap, int64_t chunk) {
  check_linear_cross_entropy(hidden, weight, labels, chunk);
  if (!takes_dtype(hidden)) return composite::linear_cross_entropy_forward(hidden, weight, labels, softcap, chunk);
  const c10::cuda::CUDAGuard guard(hidden.device());
  return chunked_cross_entropy(hidden, weight, labels, softcap, chunk, [](const CrossEntropyArgs& args) {
    C10_CUDA_CHECK(launch_cross_entropy(args, c10::cuda::getCurrentCUDAStream()));
  });
}

std::tuple<Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                         const Tensor& labels, const Tensor& lse, double softcap,
                                                         int64_t chunk) {
  check_linear_cross_entropy_backward(grad, hidden, weight, labels, lse, chunk);
  if (!takes_dtype(hidden)) {
    return composite::linear_cross_entropy_backward(grad, hidden, weight, labels, lse, softcap, chunk);
  }
  const c10::cuda::CUDAGuard guard(hidden.device());
  const auto launch = [](const CrossEntropyBackwardArgs& args) {
    C10_CUDA_CHECK(launch_cross_entropy_backward(args, c10::cuda::getCurrentCUDAStream()));
  };
  return chunked_cross_entropy_backward(grad, hidden, weight, labels, lse, softcap, chunk, launch);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CUDA, m) {
  m.impl("linear_cross_entropy_forward", linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
}

}  // namespace uniattn::cuda
