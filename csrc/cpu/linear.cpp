// x W^T in float32 through oneDNN. PyTorch gives float32 products to MKL, which on processors of other makers than
// Intel runs at half of what they can do (its AVX2 code); its oneDNN does not.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/library.h>

#include "checks.h"
#include "dispatch.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;

// Below this many multiplications a call of oneDNN costs more than it saves.
constexpr int64_t kWorthIt = 1 << 18;

using OneDnnLinear = Tensor(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                            std::string_view attribute, c10::List<std::optional<at::Scalar>> scalars,
                            std::optional<std::string_view> algorithm);

// PyTorch's operator, where it was built with oneDNN.
const std::optional<c10::TypedOperatorHandle<OneDnnLinear>>& one_dnn_linear() {
  static const auto found = []() -> std::optional<c10::TypedOperatorHandle<OneDnnLinear>> {
    const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!handle || !handle->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
    return handle->typed<OneDnnLinear>();
  }();
  return found;
}

Tensor linear(const Tensor& x, const Tensor& weight) {
  check_linear(x, weight);
  const bool suits = x.scalar_type() == at::kFloat && x.numel() * weight.size(0) >= kWorthIt;
  if (!suits || !at::globalContext().userEnabledMkldnn() || !one_dnn_linear()) return at::linear(x, weight);
  return one_dnn_linear()->call(x, weight, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("linear", linear);
}

}  // namespace uniattn::cpu
