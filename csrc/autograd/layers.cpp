// Autograd of RMSNorm, rotary embedding, gated activation and linear + cross-entropy.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/once_differentiable.h"
#include "raw.h"
#include "uniattn/ops.h"

namespace uniattn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, rstd] = raw::rms_norm_forward(x, weight, eps, unit_offset);
    ctx->save_for_backward({x, weight, rstd});
    ctx->saved_data["unit_offset"] = unit_offset;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(4);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(result[0], result[1]) =
          raw::rms_norm_backward(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["unit_offset"].toBool());
    }
    return once_differentiable("rms_norm", std::move(result));
  }
};

class Rotary : public torch::autograd::Function<Rotary> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({cos, sin});
    return rotary(x, cos, sin);
  }

  // A rotation's gradient is the rotation back, which is differentiable again.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotary(grads[0], saved[0], saved[1].neg()), Tensor(), Tensor()};
  }
};

class GatedActivation : public torch::autograd::Function<GatedActivation> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up, const std::string& activation) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({gate, up});
    ctx->saved_data["activation"] = activation;
    return gated_activation(gate, up, activation.c_str());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(3);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(result[0], result[1]) =
          raw::gated_activation_backward(grads[0], saved[0], saved[1], ctx->saved_data["activation"].toStringRef());
    }
    return once_differentiable("gated_activation", std::move(result));
  }
};

class Linear : public torch::autograd::Function<Linear> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    return uniattn::linear(x, weight);
  }

  // Both gradients are products of the same form.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor dx = ctx->needs_input_grad(0) ? uniattn::linear(grads[0], weight.t()) : Tensor();
    if (!ctx->needs_input_grad(1)) return {dx, Tensor()};
    const auto rows = [](const Tensor& y) { return y.dim() == 1 ? y.unsqueeze(0) : y.flatten(0, -2); };
    return {dx, uniattn::linear(rows(grads[0]).t(), rows(x).t())};
  }
};

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight, const Tensor& labels,
                        double softcap, int64_t chunk) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, lse] = raw::linear_cross_entropy_forward(hidden, weight, labels, softcap, chunk);
    ctx->save_for_backward({hidden, weight, labels, lse});
    ctx->saved_data["softcap"] = softcap;
    ctx->saved_data["chunk"] = chunk;
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(5);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(result[0], result[1]) =
          raw::linear_cross_entropy_backward(grads[0], saved[0], saved[1], saved[2], saved[3],
                                             ctx->saved_data["softcap"].toDouble(), ctx->saved_data["chunk"].toInt());
    }
    return once_differentiable("linear_cross_entropy", std::move(result));
  }
};

Tensor rms_norm_autograd(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  return RmsNorm::apply(x, weight, eps, unit_offset);
}

Tensor rms_norm_below_autograd(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  return std::get<0>(raw::rms_norm_forward(x, weight, eps, unit_offset));
}

Tensor rotary_autograd(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK_VALUE(!cos.requires_grad() && !sin.requires_grad(), "cos and sin of rotary are constants, but ",
                    cos.requires_grad() ? "cos" : "sin", " requires a gradient: detach it");
  return Rotary::apply(x, cos, sin);
}

Tensor linear_autograd(const Tensor& x, const Tensor& weight) {
  return Linear::apply(x, weight);
}

Tensor gated_activation_autograd(const Tensor& gate, const Tensor& up, std::string_view activation) {
  return GatedActivation::apply(gate, up, std::string(activation));
}

Tensor linear_cross_entropy_autograd(const Tensor& hidden, const Tensor& weight, const Tensor& labels, double softcap,
                                     int64_t chunk) {
  return LinearCrossEntropy::apply(hidden, weight, labels, softcap, chunk);
}

Tensor linear_cross_entropy_below_autograd(const Tensor& hidden, const Tensor& weight, const Tensor& labels,
                                           double softcap, int64_t chunk) {
  return std::get<0>(raw::linear_cross_entropy_forward(hidden, weight, labels, softcap, chunk));
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, Autograd, m) {
  m.impl("rms_norm", rms_norm_autograd);
  m.impl("rotary", rotary_autograd);
  m.impl("gated_activation", gated_activation_autograd);
  m.impl("linear", linear_autograd);
  m.impl("linear_cross_entropy", linear_cross_entropy_autograd);
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("rms_norm", rms_norm_below_autograd);
  m.impl("linear_cross_entropy", linear_cross_entropy_below_autograd);
}

}  // namespace uniattn
