#include "raw.h"

#include "dispatch.h"

namespace uniattn::raw {

using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using Scale = std::optional<double>;

ThreeTensors attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                               const AttentionOptions& o, bool keep_probs) {
  static const auto op = find_operator<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool,
                                                    int64_t, double, Scale, bool)>("uniattn::attention_forward");
  return op.call(q, k, v, cu_seqlens, o.causal, o.window, o.softcap, o.scale, keep_probs);
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, const AttentionOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const OptionalTensor&, bool, int64_t, double, Scale)>("uniattn::attend_forward");
  return op.call(q, k, lse, tiles, v, cu_seqlens, head_map, o.causal, o.window, o.softcap, o.scale);
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             const AttentionOptions& o) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const OptionalTensor&, bool, int64_t, double, Scale)>("uniattn::attend_backward_value");
  return op.call(q, k, lse, tiles, grad_out, cu_seqlens, head_map, o.causal, o.window, o.softcap, o.scale);
}

ThreeTensors superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                                 const Tensor& cu_seqlens, const std::vector<Tensor>& grad_out,
                                 const std::vector<Tensor>& v, const std::vector<Tensor>& delta,
                                 const c10::List<OptionalTensor>& head_map, const AttentionOptions& o) {
  static const auto op = find_operator<ThreeTensors(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, at::TensorList, at::TensorList,
      at::TensorList, const c10::List<OptionalTensor>&, bool, int64_t, double, Scale)>("uniattn::superblock_backward");
  return op.call(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, o.causal, o.window, o.softcap, o.scale);
}

Tensor attention_delta(const Tensor& grad_out, const Tensor& out) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&)>("uniattn::attention_delta");
  return op.call(grad_out, out);
}

TwoTensors rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  static const auto op =
      find_operator<TwoTensors(const Tensor&, const Tensor&, double, bool)>("uniattn::rms_norm_forward");
  return op.call(x, weight, eps, unit_offset);
}

TwoTensors rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd,
                             bool unit_offset) {
  static const auto op = find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool)>(
      "uniattn::rms_norm_backward");
  return op.call(grad, x, weight, rstd, unit_offset);
}

TwoTensors gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                     std::string_view activation) {
  static const auto op = find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, std::string_view)>(
      "uniattn::gated_activation_backward");
  return op.call(grad, gate, up, activation);
}

TwoTensors linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight, const Tensor& labels,
                                        double softcap, int64_t chunk) {
  static const auto op = find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, double, int64_t)>(
      "uniattn::linear_cross_entropy_forward");
  return op.call(hidden, weight, labels, softcap, chunk);
}

TwoTensors linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                         const Tensor& labels, const Tensor& lse, double softcap, int64_t chunk) {
  static const auto op =
      find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double,
                               int64_t)>("uniattn::linear_cross_entropy_backward");
  return op.call(grad, hidden, weight, labels, lse, softcap, chunk);
}

}  // namespace uniattn::raw
