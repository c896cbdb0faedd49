// Attention of the last tokens of sequences over all their tokens with the CUDA kernels of the forward pass; what they
// do not take goes to the composite. The boundaries are read back to check them.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/decode.h"
#include "cuda/run_forward.h"
#include "cuda/takes.h"
#include "decode_checks.h"

namespace uniattn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_rebuilds(const OptionalTensor& tiles) {
  TORCH_CHECK_VALUE(!tiles, "tiles must be None: on a GPU P is rebuilt and cannot be kept");
}

std::tuple<Tensor, Tensor> prefill_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t window,
                                             double softcap, std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, options, tiles);
  check_rebuilds(tiles);
  if (!takes_attention(q, k.size(0)))
    return composite::prefill_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, window, softcap, scale, tiles);
  check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k);
  const c10::cuda::CUDAGuard guard(q.device());
  const PatternTensors tensors(q, k, Tensor(), cu_seqlens_q, cu_seqlens_k, options);
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  return {run_forward(tensors, std::nullopt, v, lse.data_ptr<float>()), lse};
}

Tensor prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, const OptionalTensor& head_map, int64_t window, double softcap,
                      std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, options, tiles);
  check_rebuilds(tiles);
  if (!takes_attention(q, k.size(0)))
    return composite::prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, window, softcap, scale, tiles);
  check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k);
  check_head_map_values(head_map, q.size(1));
  const c10::cuda::CUDAGuard guard(q.device());
  return run_forward({q, k, lse, cu_seqlens_q, cu_seqlens_k, options}, head_map, v, nullptr);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CUDA, m) {
  m.impl("prefill_attention", prefill_attention);
  m.impl("prefill_attend", prefill_attend);
}

}  // namespace uniattn::cuda
