// RMSNorm, rotary embedding, gated activation and the compensated output out of ATen calls.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/composite.h"

namespace uniattn::composite {
namespace {

Tensor norm_scale(const Tensor& weight, bool unit_offset) {
  const Tensor w = weight.to(accumulation_type(weight.scalar_type()));
  return unit_offset ? w + 1 : w;
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  check_rms_norm(x, weight);
  const Tensor wide = x.to(accumulation_type(x.scalar_type()));
  const Tensor rstd = wide.square().mean(-1).add_(eps).rsqrt_();
  const Tensor y = (wide * rstd.unsqueeze(-1)).mul_(norm_scale(weight, unit_offset));
  return {y.to(x.scalar_type()).contiguous(), rstd.contiguous()};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd, bool unit_offset) {
  check_rms_norm_backward(grad, x, weight, rstd);
  const auto type = accumulation_type(x.scalar_type());
  const int64_t width = x.size(-1);
  const Tensor r = rstd.unsqueeze(-1);
  const Tensor normed = x.to(type) * r, wide_grad = grad.to(type);
  const Tensor scaled = wide_grad * norm_scale(weight, unit_offset);
  const Tensor mean = (scaled * normed).mean(-1, true);
  const Tensor dx = (scaled - normed * mean).mul_(r).to(x.scalar_type()).contiguous();
  const Tensor dweight = (wide_grad * normed).reshape({-1, width}).sum(0).to(weight.scalar_type());
  return {dx, dweight};
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_rotary(x, cos, sin);
  const int64_t half = x.size(2) / 2;
  const auto type = accumulation_type(x.scalar_type());
  const Tensor a = x.narrow(2, 0, half).to(type), b = x.narrow(2, half, half).to(type);
  const Tensor c = cos.to(type).unsqueeze(1), s = sin.to(type).unsqueeze(1);
  return at::cat({a * c - b * s, b * c + a * s}, 2).to(x.scalar_type());
}

static Tensor activate(const Tensor& gate, std::string_view activation) {
  return activation == "silu" ? at::silu(gate) : at::gelu(gate, "tanh");
}

Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
  check_gated_activation(gate, up, activation);
  const auto type = accumulation_type(gate.scalar_type());
  return (activate(gate.to(type), activation) * up.to(type)).to(gate.scalar_type()).contiguous();
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                                     std::string_view activation) {
  check_gated_activation(gate, up, activation);
  check_like(grad, "grad", gate, "gate");
  const auto type = accumulation_type(gate.scalar_type());
  const Tensor wide_grad = grad.to(type), wide_gate = gate.to(type);
  const Tensor inner = wide_grad * up.to(type);
  const Tensor dgate =
      activation == "silu" ? at::silu_backward(inner, wide_gate) : at::gelu_backward(inner, wide_gate, "tanh");
  const Tensor dup = wide_grad * activate(wide_gate, activation);
  return {dgate.to(gate.scalar_type()).contiguous(), dup.to(up.scalar_type()).contiguous()};
}

Tensor linear(const Tensor& x, const Tensor& weight) {
  check_linear(x, weight);
  return at::linear(x, weight);
}

// Differentiable as it stands. On a GPU the second product adds to the first one's result; on a CPU the faster products
// make up for the sum.
static Tensor compensated_output(const Tensor& o, const Tensor& w_o, const Tensor& x, const Tensor& w_c) {
  check_compensated_output(o, w_o, x, w_c);
  if (o.is_cpu()) return uniattn::linear(o, w_o) + uniattn::linear(x, w_c);
  return at::addmm(at::linear(o, w_o), x, w_c.t());
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("rotary", rotary);
  m.impl("linear", linear);
  m.impl("gated_activation", gated_activation);
  m.impl("gated_activation_backward", gated_activation_backward);
}

TORCH_LIBRARY_IMPL(uniattn, CompositeImplicitAutograd, m) {
  m.impl("compensated_output", compensated_output);
}

}  // namespace uniattn::composite
