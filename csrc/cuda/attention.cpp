// The CUDA kernels of attention as operators; what they do not take goes to the composite.
//
// The forward operators read cu_seqlens and head_map back to check them. The backward ones get what a forward operator
// has checked, and do not wait for the device; their kernels stay inside the tensors whatever the values are. P is
// always rebuilt: `tiles` are empty.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/composite.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "cuda/run_forward.h"
#include "cuda/takes.h"
#include "probs_tiles.h"

namespace uniattn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Queries are as many as keys.
bool takes(const Tensor& q) {
  return takes_attention(q, q.dim() == 3 ? q.size(0) : 0);
}

std::vector<Tensor> all_aligned(at::TensorList list) {
  std::vector<Tensor> result;
  for (const Tensor& x : list) result.push_back(aligned(x));
  return result;
}

OptionalTensor contiguous(const OptionalTensor& x) {
  return x ? OptionalTensor(x->contiguous()) : std::nullopt;
}

const int64_t* data(const OptionalTensor& head_map) {
  return head_map ? head_map->const_data_ptr<int64_t>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& cu_seqlens, bool causal, int64_t window,
                                                     double softcap, std::optional<double> scale, bool keep_probs) {
  TORCH_CHECK_VALUE(!keep_probs, "keep_probs is True, but the CUDA kernels rebuild P and cannot keep it");
  if (!takes(q)) return composite::attention_forward(q, k, v, cu_seqlens, causal, window, softcap, scale, false);
  const AttentionOptions options{causal, window, softcap, scale};
  check_attention(q, k, v, cu_seqlens, options);
  check_sequences(cu_seqlens, q.size(0));
  const c10::cuda::CUDAGuard guard(q.device());
  const PatternTensors tensors(q, k, Tensor(), cu_seqlens, options);
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  return {run_forward(tensors, std::nullopt, v, lse.data_ptr<float>()), lse, empty_tiles(q, options, false)};
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                      double softcap, std::optional<double> scale) {
  if (!takes(q))
    return composite::attend_forward(q, k, lse, tiles, v, cu_seqlens, head_map, causal, window, softcap, scale);
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend(q, k, lse, tiles, v, cu_seqlens, head_map, options);
  check_head_map_values(head_map, q.size(1));
  const c10::cuda::CUDAGuard guard(q.device());
  return run_forward({q, k, lse, cu_seqlens, options}, head_map, v, nullptr);
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             bool causal, int64_t window, double softcap, std::optional<double> scale) {
  if (!takes(q)) {
    return composite::attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, causal, window, softcap,
                                            scale);
  }
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, options);
  const c10::cuda::CUDAGuard guard(q.device());
  const PatternTensors tensors(q, k, lse, cu_seqlens, options);
  const OptionalTensor map = contiguous(head_map);
  const Tensor grad = aligned(grad_out), dv = at::empty(k.sizes(), k.options());
  C10_CUDA_CHECK(launch_value_backward({tensors.pattern, data(map), grad.const_data_ptr(), dv.data_ptr()},
                                       c10::cuda::getCurrentCUDAStream()));
  return dv;
}

std::tuple<Tensor, Tensor, Tensor> superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse,
                                                       const Tensor& tiles, const Tensor& cu_seqlens,
                                                       at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                                                       const c10::List<OptionalTensor>& head_map, bool causal,
                                                       int64_t window, double softcap, std::optional<double> scale) {
  if (!takes(q) || grad_out.size() > kMaxLayers) {
    return composite::superblock_backward(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, causal, window,
                                          softcap, scale);
  }
  const AttentionOptions options{causal, window, softcap, scale};
  check_superblock(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, options);
  const c10::cuda::CUDAGuard guard(q.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const PatternTensors tensors(q, k, lse, cu_seqlens, options);
  const ReaderTensors readers(head_map, q);
  const Tensor deltas = at::stack(delta), sum = at::empty(lse.sizes(), lse.options());
  C10_CUDA_CHECK(launch_delta_sum({tensors.pattern.tokens, tensors.pattern.heads, readers.pointers(),
                                   deltas.const_data_ptr<float>(), sum.data_ptr<float>()},
                                  stream));

  const std::vector<Tensor> grads = all_aligned(grad_out), values = all_aligned(v);
  const Tensor dq = at::empty(q.sizes(), q.options());
  const Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(k.sizes(), k.options());
  SuperblockBackwardArgs args{tensors.pattern, readers.pointers(), {},           sum.const_data_ptr<float>(),
                              dq.data_ptr(),   dk.data_ptr(),      dv.data_ptr()};
  for (size_t i = 0; i < grads.size(); ++i) args.layers[i] = {grads[i].const_data_ptr(), values[i].const_data_ptr()};
  C10_CUDA_CHECK(launch_superblock_backward(args, stream));
  return {dq, dk, dv};
}

Tensor attention_delta(const Tensor& grad_out, const Tensor& out) {
  if (!takes(out)) return composite::attention_delta(grad_out, out);
  check_like(grad_out, "grad_out", out, "out");
  const c10::cuda::CUDAGuard guard(out.device());
  const Tensor a = aligned(grad_out), b = aligned(out);
  const Tensor delta = at::empty({out.size(1), out.size(0)}, out.options().dtype(at::kFloat));
  C10_CUDA_CHECK(
      launch_delta({type_of(out), static_cast<int>(out.size(0)), static_cast<int>(out.size(1)),
                    static_cast<int>(out.size(2)), a.const_data_ptr(), b.const_data_ptr(), delta.data_ptr<float>()},
                   c10::cuda::getCurrentCUDAStream()));
  return delta;
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CUDA, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attend_forward", attend_forward);
  m.impl("attend_backward_value", attend_backward_value);
  m.impl("superblock_backward", superblock_backward);
  m.impl("attention_delta", attention_delta);
}

}  // namespace uniattn::cuda
