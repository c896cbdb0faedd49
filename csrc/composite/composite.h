// The composite kernels as functions, for kernels that take some shapes and dtypes only. Arguments are those of
// schema.cpp.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace uniattn::composite {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& cu_seqlens, bool causal, int64_t window,
                                                     double softcap, std::optional<double> scale, bool keep_probs);
Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                      double softcap, std::optional<double> scale);
Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             bool causal, int64_t window, double softcap, std::optional<double> scale);
std::tuple<Tensor, Tensor, Tensor> superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse,
                                                       const Tensor& tiles, const Tensor& cu_seqlens,
                                                       at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                                                       const c10::List<OptionalTensor>& head_map, bool causal,
                                                       int64_t window, double softcap, std::optional<double> scale);
Tensor attention_delta(const Tensor& grad_out, const Tensor& out);

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps, bool unit_offset);
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd, bool unit_offset);
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin);
Tensor gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation);
std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& gate, const Tensor& up,
                                                     std::string_view activation);

std::tuple<Tensor, Tensor> linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& labels, double softcap, int64_t chunk);
std::tuple<Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                         const Tensor& labels, const Tensor& lse, double softcap,
                                                         int64_t chunk);
// Positions of the supervised tokens (label not -100), int64; their labels are checked against the vocabulary.
Tensor supervised_tokens(const Tensor& labels, int64_t vocabulary);

}  // namespace uniattn::composite
