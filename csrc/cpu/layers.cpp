// CPU kernels of RMSNorm, rotary embedding and gated activation for float32 and bfloat16; other dtypes go to the
// composite.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "composite/composite.h"
#include "cpu/kernels.h"
#include "cpu/types.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 16384;  // elements worth a thread

int64_t row_grain(int64_t width) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
}

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  check_rms_norm(x, weight);
  if (!is_supported(x)) return composite::rms_norm_forward(x, weight, eps, unit_offset);
  const Tensor rows = x.contiguous(), w = weight.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor rstd = at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat));
  const RmsNormArgs args{rows.const_data_ptr(), w.const_data_ptr(), x.size(-1),
                         unit_offset,           type_of(x),         rstd.data_ptr<float>()};
  at::parallel_for(0, rstd.numel(), row_grain(args.width), [&](int64_t begin, int64_t end) {
    kernels().rms_norm_forward(args, eps, y.data_ptr(), begin, end);
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd, bool unit_offset) {
  check_rms_norm_backward(grad, x, weight, rstd);
  if (!is_supported(x)) return composite::rms_norm_backward(grad, x, weight, rstd, unit_offset);
  const Tensor rows = x.contiguous(), w = weight.contiguous(), g = grad.contiguous(), r = rstd.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  const RmsNormArgs args{rows.const_data_ptr(), w.const_data_ptr(), x.size(-1),
                         unit_offset,           type_of(x),         r.data_ptr<float>()};
  // The weight's gradient is summed over chunks whose size does not depend on the number of threads: equal runs, equal
  // bits.
  const int64_t chunk = std::max<int64_t>(64, (r.numel() + 15) / 16), chunks = (r.numel() + chunk - 1) / chunk;
  Tensor partial = at::zeros({chunks, args.width}, x.options().dtype(at::kFloat));
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      kernels().rms_norm_backward(args, g.const_data_ptr(), dx.data_ptr(), partial.data_ptr<float>() + c * args.width,
                                  c * chunk, std::min((c + 1) * chunk, r.numel()));
    }
  });
  return {dx, partial.sum(0).to(weight.scalar_type())};
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_rotary(x, cos, sin);
  if (!is_supported(x) || cos.scalar_type() != at::kFloat) return composite::rotary(x, cos, sin);
  const Tensor source = x.stride(2) == 1 ? x : x.contiguous(), c = cos.contiguous(), s = sin.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  const RotaryArgs args{
      source.const_data_ptr(),   source.stride(0),          source.stride(1), x.size(1),     x.size(2),
      c.const_data_ptr<float>(), s.const_data_ptr<float>(), type_of(x),       out.data_ptr()};
  at::parallel_for(0, x.size(0), row_grain(x.size(1) * x.size(2)),
                   [&](int64_t begin, int64_t end) { kernels().rotary(args, begin, end); });
  return out;
}

Activation parse_activation(std::string_view name) {
  return name == "silu" ? Activation::kSilu : Activation::kGeluTanh;
}

Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
  check_gated_activation(gate, up, activation);
  if (!is_supported(gate)) return composite::gated_activation(gate, up, activation);
  const Tensor g = gate.contiguous(), u = up.contiguous();
  Tensor out = at::empty(gate.sizes(), gate.options());
  at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels().gated_activation(g.const_data_ptr(), u.const_data_ptr(), parse_activation(activation), type_of(gate),
                               out.data_ptr(), begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                                     std::string_view activation) {
  check_gated_activation(gate, up, activation);
  check_like(grad, "grad", gate, "gate");
  if (!is_supported(gate)) return composite::gated_activation_backward(grad, gate, up, activation);
  const Tensor d = grad.contiguous(), g = gate.contiguous(), u = up.contiguous();
  Tensor dgate = at::empty(gate.sizes(), gate.options()), dup = at::empty(up.sizes(), up.options());
  at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels().gated_activation_backward(d.const_data_ptr(), g.const_data_ptr(), u.const_data_ptr(),
                                        parse_activation(activation), type_of(gate), dgate.data_ptr(), dup.data_ptr(),
                                        begin, end);
  });
  return {dgate, dup};
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("rotary", rotary);
  m.impl("gated_activation", gated_activation);
  m.impl("gated_activation_backward", gated_activation_backward);
}

}  // namespace uniattn::cpu
