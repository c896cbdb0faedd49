// The backward passes here are kernels without a derivative of their own: differentiating twice must say so, never give
// a gradient that silently lacks a term.
#pragma once
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <memory>
#include <string>

namespace uniattn {

// `grads`, the result of the backward pass of operator `name`; with create_graph they carry a node that throws when
// reached.
inline torch::autograd::variable_list once_differentiable(const char* name, torch::autograd::variable_list grads) {
  if (!at::GradMode::is_enabled()) return grads;
  for (at::Tensor& grad : grads) {
    if (grad.defined()) grad = grad.detach().set_requires_grad(true);
  }
  const std::string message =
      std::string("uniattn::") + name + " can be differentiated once only: its gradient has no gradient";
  auto node = std::make_shared<torch::autograd::DelayedError>(message, static_cast<int64_t>(grads.size()));
  return (*node)(std::move(grads));
}

}  // namespace uniattn
