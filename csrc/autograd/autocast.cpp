// Under torch.autocast the products take the autocast dtype, as PyTorch's own do; softmax, norms and losses stay
// float32 inside. compensated_output is made of PyTorch's products and needs nothing here.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "dispatch.h"
#include "uniattn/ops.h"

namespace uniattn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using AttentionOutputs = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

// The kernels of one device type.
template <at::DeviceType device>
struct Autocast {
  static Tensor cast(const Tensor& x) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
  }
  // The operator below autocast.
  template <class... Args>
  static auto call(const auto& op, Args&&... args) {
    const c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
    return op.call(std::forward<Args>(args)...);
  }

  static AttentionOutputs attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                                    int64_t followers, bool causal, int64_t window, double softcap,
                                    std::optional<double> scale, std::optional<bool> keep_probs, int64_t probs_budget) {
    static const auto op = find_operator<decltype(attention)>("uniattn::attention");
    return call(op, cast(q), cast(k), cast(v), cu_seqlens, followers, causal, window, softcap, scale, keep_probs,
                probs_budget);
  }

  static Tensor attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                       const Tensor& cu_seqlens, const Tensor& handle_out, const Tensor& handle_value,
                       const Tensor& handle_delta, const OptionalTensor& head_map, bool causal, int64_t window,
                       double softcap, std::optional<double> scale) {
    static const auto op = find_operator<decltype(attend)>("uniattn::attend");
    return call(op, cast(q), cast(k), lse, tiles, cast(v), cu_seqlens, handle_out, handle_value, handle_delta, head_map,
                causal, window, softcap, scale);
  }

  // The norm keeps the dtype of the residual stream, whatever that of its weight.
  static Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
    static const auto op = find_operator<decltype(rms_norm)>("uniattn::rms_norm");
    return call(op, x, weight.to(x.scalar_type()), eps, unit_offset);
  }

  static Tensor linear(const Tensor& x, const Tensor& weight) {
    static const auto op = find_operator<decltype(linear)>("uniattn::linear");
    return call(op, cast(x), cast(weight));
  }

  static Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
    static const auto op = find_operator<decltype(gated_activation)>("uniattn::gated_activation");
    return call(op, cast(gate), cast(up), activation);
  }

  static Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& labels, double softcap,
                                     int64_t chunk) {
    static const auto op = find_operator<decltype(linear_cross_entropy)>("uniattn::linear_cross_entropy");
    return call(op, cast(hidden), cast(weight), labels, softcap, chunk);
  }

  static void install(torch::Library& m) {
    m.impl("attention", attention);
    m.impl("attend", attend);
    m.impl("rms_norm", rms_norm);
    m.impl("linear", linear);
    m.impl("gated_activation", gated_activation);
    m.impl("linear_cross_entropy", linear_cross_entropy);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, AutocastCPU, m) {
  Autocast<at::kCPU>::install(m);
}
TORCH_LIBRARY_IMPL(uniattn, AutocastCUDA, m) {
  Autocast<at::kCUDA>::install(m);
}

}  // namespace uniattn
