// The CUDA kernels of decoding as operators. They do not wait for the device, so that steps can be queued and captured:
// what page_table, lengths, slots and head_map hold is checked by the kernels, where a wrong value ends the launch.
#include "uniattn/decode.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/decode.h"
#include "cuda/decode_arguments.h"
#include "cuda/launch.h"
#include "cuda/takes.h"
#include "decode_checks.h"

namespace uniattn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const Tensor& page_table, const Tensor& lengths, int64_t max_length,
                                            bool return_probs, int64_t window, double softcap,
                                            std::optional<double> scale) {
  const AttentionOptions options{true, window, softcap, scale};
  check_decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, options);
  if (!takes_dtype(k_cache)) {
    return composite::decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, return_probs, window,
                                       softcap, scale);
  }
  const c10::cuda::CUDAGuard guard(q.device());
  const LeaderTensors tensors(q, k_cache, v_cache, page_table, lengths, max_length, return_probs, options);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_decode(tensors.leader(), stream));
  C10_CUDA_CHECK(launch_decode_merge(tensors.merge(), stream));
  return {tensors.out, tensors.probs};
}

Tensor decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                     const OptionalTensor& head_map, int64_t window) {
  check_decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  if (!takes_dtype(v_cache)) return composite::decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  const c10::cuda::CUDAGuard guard(probs.device());
  const FollowerTensors tensors(probs, v_cache, page_table, lengths, head_map, window);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(launch_decode(tensors.follower(), stream));
  C10_CUDA_CHECK(launch_decode_merge(tensors.merge(), stream));
  return tensors.out;
}

void append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  check_append_to_cache(cache, x, slots);
  const c10::cuda::CUDAGuard guard(cache.device());
  const Tensor rows = x.contiguous(), places = slots.contiguous();
  C10_CUDA_CHECK(launch_append_to_cache(cache_rows(cache, rows, places), c10::cuda::getCurrentCUDAStream()));
}

Tensor read_cache(const Tensor& cache, const Tensor& slots) {
  check_read_cache(cache, slots);
  const c10::cuda::CUDAGuard guard(cache.device());
  const Tensor rows = at::empty({slots.size(0), cache.size(1), cache.size(3)}, cache.options());
  const Tensor places = slots.contiguous();
  C10_CUDA_CHECK(launch_read_cache(cache_rows(cache, rows, places), c10::cuda::getCurrentCUDAStream()));
  return rows;
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CUDA, m) {
  m.impl("decode_attention", decode_attention);
  m.impl("decode_attend", decode_attend);
  m.impl("append_to_cache", append_to_cache);
  m.impl("read_cache", read_cache);
}

}  // namespace uniattn::cuda
