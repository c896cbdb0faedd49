#include "uniattn/ops.h"

#include "dispatch.h"
#include "raw.h"

namespace uniattn {

using at::Tensor;
using Scale = std::optional<double>;

AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                          int64_t followers, const AttentionOptions& options, std::optional<bool> keep_probs,
                          int64_t probs_budget) {
  static const auto op = find_operator<std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, bool, int64_t, double, Scale,
      std::optional<bool>, int64_t)>("uniattn::attention");
  auto [out, lse, tiles, handles] = op.call(q, k, v, cu_seqlens, followers, options.causal, options.window,
                                            options.softcap, options.scale, keep_probs, probs_budget);
  AttentionResult result{out, {}};
  for (int64_t i = 0; i < followers; ++i) {
    result.probs.push_back(
        {q, k, lse, tiles, cu_seqlens, handles[3 * i], handles[3 * i + 1], handles[3 * i + 2], options});
  }
  return result;
}

Tensor attend(const Probs& p, const Tensor& v, const std::optional<Tensor>& head_map) {
  static const auto op = find_operator<Tensor(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
      const Tensor&, const Tensor&, const std::optional<Tensor>&, bool, int64_t, double, Scale)>("uniattn::attend");
  // An undefined tensor inside the optional stands for the identity too.
  const auto map = head_map && head_map->defined() ? head_map : std::nullopt;
  return op.call(p.q, p.k, p.lse, p.tiles, v, p.cu_seqlens, p.grad_handle_out, p.grad_handle_value, p.grad_handle_delta,
                 map, p.options.causal, p.options.window, p.options.softcap, p.options.scale);
}

Tensor attend_backward_value(const Probs& p, const Tensor& grad_out, const std::optional<Tensor>& head_map) {
  return raw::attend_backward_value(p.q, p.k, p.lse, p.tiles, grad_out, p.cu_seqlens, head_map, p.options);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, bool unit_offset) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, double, bool)>("uniattn::rms_norm");
  return op.call(x, weight, eps, unit_offset);
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&)>("uniattn::rotary");
  return op.call(x, cos, sin);
}

Tensor gated_activation(const Tensor& gate, const Tensor& up, const char* activation) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, std::string_view)>("uniattn::gated_activation");
  return op.call(gate, up, activation);
}

Tensor linear(const Tensor& x, const Tensor& weight) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&)>("uniattn::linear");
  return op.call(x, weight);
}

Tensor compensated_output(const Tensor& o, const Tensor& w_o, const Tensor& x, const Tensor& w_c) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("uniattn::compensated_output");
  return op.call(o, w_o, x, w_c);
}

Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& labels, double softcap,
                            int64_t chunk) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, double, int64_t)>(
      "uniattn::linear_cross_entropy");
  return op.call(hidden, weight, labels, softcap, chunk);
}

}  // namespace uniattn
