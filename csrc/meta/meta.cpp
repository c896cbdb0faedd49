// Shapes and dtypes of the raw operators' results, from metadata alone: for fake tensors and torch.compile.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "probs_tiles.h"

namespace uniattn::meta {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor contiguous_like(const Tensor& x) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

Tensor statistic(const Tensor& like, c10::SymIntArrayRef sizes) {
  return at::empty_symint(sizes, like.options().dtype(accumulation_type(like.scalar_type())));
}

Tensor row_statistic(const Tensor& q) {
  return statistic(q, {q.sym_size(1), q.sym_size(0)});
}

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& cu_seqlens, bool causal, int64_t window,
                                                     double softcap, std::optional<double> scale, bool keep_probs) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attention(q, k, v, cu_seqlens, options);
  return {contiguous_like(q), row_statistic(q), empty_tiles(q, options, keep_probs)};
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                      double softcap, std::optional<double> scale) {
  check_attend(q, k, lse, tiles, v, cu_seqlens, head_map, {causal, window, softcap, scale});
  return contiguous_like(q);
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             bool causal, int64_t window, double softcap, std::optional<double> scale) {
  check_attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, {causal, window, softcap, scale});
  return contiguous_like(k);
}

std::tuple<Tensor, Tensor, Tensor> superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse,
                                                       const Tensor& tiles, const Tensor& cu_seqlens,
                                                       at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                                                       const c10::List<OptionalTensor>& head_map, bool causal,
                                                       int64_t window, double softcap, std::optional<double> scale) {
  check_superblock(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, {causal, window, softcap, scale});
  return {contiguous_like(q), contiguous_like(k), contiguous_like(k)};
}

Tensor attention_delta(const Tensor& grad_out, const Tensor& out) {
  check_like(grad_out, "grad_out", out, "out");
  return row_statistic(out);
}

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double, bool) {
  check_rms_norm(x, weight);
  return {contiguous_like(x), statistic(x, x.sym_sizes().slice(0, x.dim() - 1))};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd, bool) {
  check_rms_norm_backward(grad, x, weight, rstd);
  return {contiguous_like(x), contiguous_like(weight)};
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_rotary(x, cos, sin);
  return contiguous_like(x);
}

Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
  check_gated_activation(gate, up, activation);
  return contiguous_like(gate);
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                                     std::string_view activation) {
  check_gated_activation(gate, up, activation);
  check_like(grad, "grad", gate, "gate");
  return {contiguous_like(gate), contiguous_like(up)};
}

std::tuple<Tensor, Tensor> linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& labels, double, int64_t chunk) {
  check_linear_cross_entropy(hidden, weight, labels, chunk);
  const auto tokens = hidden.sym_size(0);
  return {statistic(hidden, {tokens}), statistic(hidden, {tokens})};
}

std::tuple<Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                         const Tensor& labels, const Tensor& lse, double,
                                                         int64_t chunk) {
  check_linear_cross_entropy_backward(grad, hidden, weight, labels, lse, chunk);
  return {contiguous_like(hidden), contiguous_like(weight)};
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, Meta, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attend_forward", attend_forward);
  m.impl("attend_backward_value", attend_backward_value);
  m.impl("superblock_backward", superblock_backward);
  m.impl("attention_delta", attention_delta);
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("rotary", rotary);
  m.impl("gated_activation", gated_activation);
  m.impl("gated_activation_backward", gated_activation_backward);
  m.impl("linear_cross_entropy_forward", linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
}

}  // namespace uniattn::meta
