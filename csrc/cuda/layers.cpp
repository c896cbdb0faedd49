// The CUDA kernels of RMSNorm, rotary embedding and gated activation as operators; dtypes that they do not take go to
// the composite.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/composite.h"
#include "cuda/launch.h"
#include "cuda/layers_arguments.h"
#include "cuda/takes.h"

namespace uniattn::cuda {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  check_rms_norm(x, weight);
  if (!takes_dtype(x)) return composite::rms_norm_forward(x, weight, eps, unit_offset);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor rows = x.contiguous(), w = weight.contiguous();
  const Tensor y = at::empty(x.sizes(), x.options());
  const Tensor rstd = at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_rms_norm(rms_norm_args(rows, w, eps, unit_offset, y, rstd), stream));
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd, bool unit_offset) {
  check_rms_norm_backward(grad, x, weight, rstd);
  if (!takes_dtype(x)) return composite::rms_norm_backward(grad, x, weight, rstd, unit_offset);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor g = grad.contiguous(), rows = x.contiguous(), w = weight.contiguous(), r = rstd.contiguous();
  const Tensor dx = at::empty(x.sizes(), x.options()), dweight = at::empty(weight.sizes(), weight.options());
  const Tensor partial = norm_partial(x, r.numel());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_rms_norm_backward(rms_norm_backward_args(g, rows, w, r, unit_offset, dx, partial), stream));
  C10_CUDA_CHECK(launch_rms_norm_weight(rms_norm_weight_args(partial, dweight), stream));
  return {dx, dweight};
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_rotary(x, cos, sin);
  if (!takes_dtype(x) || cos.scalar_type() != at::kFloat) return composite::rotary(x, cos, sin);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor source = x.stride(2) == 1 ? x : x.contiguous(), c = cos.contiguous(), s = sin.contiguous();
  const Tensor out = at::empty(x.sizes(), x.options());
  C10_CUDA_CHECK(launch_rotary(rotary_args(source, c, s, out), c10::cuda::getCurrentCUDAStream()));
  return out;
}

Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
  check_gated_activation(gate, up, activation);
  if (!takes_dtype(gate)) return composite::gated_activation(gate, up, activation);
  const c10::cuda::CUDAGuard guard(gate.device());
  const Tensor g = gate.contiguous(), u = up.contiguous();
  const Tensor out = at::empty(gate.sizes(), gate.options());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_gated_activation(gated_activation_args(g, u, activation, out), stream));
  return out;
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                                     std::string_view activation) {
  check_gated_activation(gate, up, activation);
  check_like(grad, "grad", gate, "gate");
  if (!takes_dtype(gate)) return composite::gated_activation_backward(grad, gate, up, activation);
  const c10::cuda::CUDAGuard guard(gate.device());
  const Tensor d = grad.contiguous(), g = gate.contiguous(), u = up.contiguous();
  const Tensor dgate = at::empty(gate.sizes(), gate.options()), dup = at::empty(up.sizes(), up.options());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(
      launch_gated_activation_backward(gated_activation_backward_args(d, g, u, activation, dgate, dup), stream));
  return {dgate, dup};
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CUDA, m) {
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("rotary", rotary);
  m.impl("gated_activation", gated_activation);
  m.impl("gated_activation_backward", gated_activation_backward);
}

}  // namespace uniattn::cuda
