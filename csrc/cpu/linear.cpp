// x W^T: a few rows by a kernel of our own that streams W, more in float32 through oneDNN, in float64 by another kernel
// of our own. PyTorch gives such products to MKL, which on processors of other makers than Intel runs at half of what
// they can do (its AVX2 code).
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/types.h"
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

// Up to here the weights stream from memory faster than the processor would pack them for larger products.
constexpr int64_t kFewRows = 32;
// Multiplications that are worth another thread then.
constexpr int64_t kWorthAThread = 1 << 16;

bool streams(const Tensor& x, const Tensor& weight) {
  return is_supported(x) && x.numel() > 0 && x.numel() <= kFewRows * x.size(-1) && weight.is_contiguous();
}

Tensor empty_result(const Tensor& x, const Tensor& weight) {
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return at::empty(sizes, x.options());
}

Tensor streaming_linear(const Tensor& x, const Tensor& weight) {
  const Tensor rows = x.contiguous();
  Tensor out = empty_result(x, weight);
  const StreamingLinearArgs args{
      rows.const_data_ptr(), weight.const_data_ptr(), x.numel() / x.size(-1), x.size(-1), weight.size(0), type_of(x),
      out.data_ptr()};
  at::parallel_for(0, args.width, std::max<int64_t>(8, kWorthAThread / x.numel()),
                   [&](int64_t begin, int64_t end) { kernels().streaming_linear(args, begin, end); });
  return out;
}

bool mkl_runs_slow_code() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

bool suits_double_linear(const Tensor& x, const Tensor& weight) {
  return x.scalar_type() == at::kDouble && kernels().double_linear != nullptr && mkl_runs_slow_code() &&
         x.numel() >= kFewRows * x.size(-1) && weight.size(0) % kDoubleColumns == 0 &&
         x.numel() * weight.size(0) >= kWorthIt;
}

Tensor double_linear(const Tensor& x, const Tensor& weight) {
  const Tensor rows = x.contiguous(), columns = weight.contiguous();
  Tensor out = empty_result(x, weight);
  const DoubleLinearArgs args{rows.const_data_ptr<double>(),
                              columns.const_data_ptr<double>(),
                              x.numel() / x.size(-1),
                              x.size(-1),
                              weight.size(0),
                              out.mutable_data_ptr<double>()};
  const int64_t strips = (args.width + kDoubleStrip - 1) / kDoubleStrip;
  at::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    kernels().double_linear(args, begin * kDoubleStrip, std::min(end * kDoubleStrip, args.width));
  });
  return out;
}

Tensor linear(const Tensor& x, const Tensor& weight) {
  check_linear(x, weight);
  if (streams(x, weight)) return streaming_linear(x, weight);
  if (suits_double_linear(x, weight)) return double_linear(x, weight);
  const bool suits = x.scalar_type() == at::kFloat && x.numel() * weight.size(0) >= kWorthIt;
  if (!suits || !at::globalContext().userEnabledMkldnn() || !one_dnn_linear()) return at::linear(x, weight);
  return one_dnn_linear()->call(x, weight, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("linear", linear);
}

}  // namespace uniattn::cpu
