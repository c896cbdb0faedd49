#include "model/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace uniattn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What AutogradContext can hold of a function.
struct HeldFunction : torch::CustomClassHolder {
  explicit HeldFunction(TensorFunction f) : function(std::move(f)) {}
  TensorFunction function;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<HeldFunction>& held,
                               at::TensorList inputs) {
    ctx->saved_data["function"] = c10::IValue::make_capsule(held);
    ctx->save_for_backward(inputs.vec());
    ctx->set_materialize_grads(false);
    return held->function(inputs.vec());  // autograd is off in here
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto held = c10::static_intrusive_pointer_cast<HeldFunction>(ctx->saved_data["function"].toCapsule());
    variable_list inputs;
    for (const at::Tensor& saved : ctx->get_saved_variables())
      inputs.push_back(saved.detach().set_requires_grad(ctx->needs_input_grad(inputs.size())));
    variable_list outputs;
    {
      const at::AutoGradMode record(true);
      outputs = held->function(inputs);
    }
    return gradients(inputs, outputs, grads);
  }

 private:
  // One per argument of forward(): none for the function, then those of the inputs that need one.
  static variable_list gradients(const variable_list& inputs, const variable_list& outputs,
                                 const variable_list& grads) {
    variable_list roots, root_grads, wanted, result(1 + inputs.size());
    for (size_t i = 0; i < outputs.size(); ++i)
      if (grads[i].defined() && outputs[i].requires_grad()) roots.push_back(outputs[i]), root_grads.push_back(grads[i]);
    for (const at::Tensor& input : inputs)
      if (input.requires_grad()) wanted.push_back(input);
    if (roots.empty()) return result;
    const variable_list found = torch::autograd::grad(roots, wanted, root_grads, /*retain_graph=*/false,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    size_t next = 0;
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i].requires_grad()) result[1 + i] = found[next++];
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> recompute(TensorFunction function, const std::vector<at::Tensor>& inputs) {
  return Recompute::apply(c10::make_intrusive<HeldFunction>(std::move(function)), at::TensorList(inputs));
}

}  // namespace uniattn
