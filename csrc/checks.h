// Argument checks shared by the kernels. A failure names the operator's argument, what was found and what is needed.
// Everything but check_sequences and check_head_map_values looks at metadata alone, so fake tensors pass through.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "uniattn/ops.h"

namespace uniattn {

// `x` must be on the device of `like`; check_same_kind: and have its dtype.
void check_on_device_of(const at::Tensor& x, const char* name, const at::Tensor& like, const char* like_name);
void check_same_kind(const at::Tensor& x, const char* name, const at::Tensor& like, const char* like_name);
// q [tokens, heads, head_dim] and k [tokens, kv_heads, head_dim], kv_heads dividing heads, with cu_seqlens and options.
void check_query_key(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens,
                     const AttentionOptions& options);
// `x` must have the shape, dtype and device of `like`.
void check_like(const at::Tensor& x, const char* name, const at::Tensor& like, const char* like_name);
// `x` (lse or delta) must be [heads, tokens] of q in the accumulation dtype.
void check_row_statistic(const at::Tensor& x, const char* name, const at::Tensor& q);
// tiles must be [heads, anything] of q in its dtype; probs_tiles.h tells whether they hold P.
void check_tiles(const at::Tensor& tiles, const at::Tensor& q);
// head_map must be int64 [heads] of q on its device.
void check_head_map(const std::optional<at::Tensor>& head_map, const at::Tensor& q);
// The arguments of the attention operators, metadata only.
void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
                     const AttentionOptions& options);
void check_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const at::Tensor& tiles,
                  const at::Tensor& v, const at::Tensor& cu_seqlens, const std::optional<at::Tensor>& head_map,
                  const AttentionOptions& options);
void check_attend_backward_value(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse,
                                 const at::Tensor& tiles, const at::Tensor& grad_out, const at::Tensor& cu_seqlens,
                                 const std::optional<at::Tensor>& head_map, const AttentionOptions& options);
void check_superblock(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const at::Tensor& tiles,
                      const at::Tensor& cu_seqlens, at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                      const c10::List<std::optional<at::Tensor>>& head_map, const AttentionOptions& options);
// Every leader head in head_map must be in [0, heads); reads the values.
void check_head_map_values(const std::optional<at::Tensor>& head_map, int64_t heads);
// The boundaries of the sequences, read from the argument called `name`: from 0 to `tokens`, never falling.
std::vector<int64_t> check_sequences(const at::Tensor& cu_seqlens, int64_t tokens, const char* name = "cu_seqlens");

void check_rms_norm(const at::Tensor& x, const at::Tensor& weight);
void check_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                             const at::Tensor& rstd);
void check_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
void check_gated_activation(const at::Tensor& gate, const at::Tensor& up, std::string_view activation);
void check_linear(const at::Tensor& x, const at::Tensor& weight);
void check_compensated_output(const at::Tensor& o, const at::Tensor& w_o, const at::Tensor& x, const at::Tensor& w_c);
void check_linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                int64_t chunk);
void check_linear_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& weight,
                                         const at::Tensor& labels, const at::Tensor& lse, int64_t chunk);

// float64 for float64, float32 for every other floating type.
at::ScalarType accumulation_type(at::ScalarType type);
// options.scale, or head_dim^-1/2.
double resolved_scale(const AttentionOptions& options, int64_t head_dim);

}  // namespace uniattn
