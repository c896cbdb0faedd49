// The composite kernels of decoding and chunked prefill as functions. Arguments are those of schema.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace uniattn::composite {

std::tuple<at::Tensor, at::Tensor> decode_attention(const at::Tensor& q, const at::Tensor& k_cache,
                                                    const at::Tensor& v_cache, const at::Tensor& page_table,
                                                    const at::Tensor& lengths, int64_t max_length, bool return_probs,
                                                    int64_t window, double softcap, std::optional<double> scale);
at::Tensor decode_attend(const at::Tensor& probs, const at::Tensor& v_cache, const at::Tensor& page_table,
                         const at::Tensor& lengths, const std::optional<at::Tensor>& head_map, int64_t window);

std::tuple<at::Tensor, at::Tensor> prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                     const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                                                     int64_t window, double softcap, std::optional<double> scale,
                                                     const std::optional<at::Tensor>& tiles);
at::Tensor prefill_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const at::Tensor& v,
                          const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                          const std::optional<at::Tensor>& head_map, int64_t window, double softcap,
                          std::optional<double> scale, const std::optional<at::Tensor>& tiles);

}  // namespace uniattn::composite
