// Shapes and dtypes of the results of decoding and chunked prefill, from metadata alone.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "decode_checks.h"

namespace uniattn::meta {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor filled_by_kernel(c10::SymIntArrayRef sizes, const Tensor& like) {
  return at::empty_symint(sizes, like.options());
}

Tensor in_accumulation_type(c10::SymIntArrayRef sizes, const Tensor& like) {
  return at::empty_symint(sizes, like.options().dtype(accumulation_type(like.scalar_type())));
}

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const Tensor& page_table, const Tensor& lengths, int64_t max_length,
                                            bool return_probs, int64_t window, double softcap,
                                            std::optional<double> scale) {
  check_decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, {true, window, softcap, scale});
  const int64_t page_size = k_cache.size(2);
  const int64_t columns = return_probs ? most_visible_pages(max_length, window, page_size) * page_size : 0;
  return {filled_by_kernel(q.sym_sizes(), q), in_accumulation_type({q.sym_size(0), q.sym_size(1), columns}, q)};
}

Tensor decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                     const OptionalTensor& head_map, int64_t window) {
  check_decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  return filled_by_kernel({probs.sym_size(0), probs.sym_size(1), v_cache.sym_size(3)}, v_cache);
}

void append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  check_append_to_cache(cache, x, slots);
}

Tensor read_cache(const Tensor& cache, const Tensor& slots) {
  check_read_cache(cache, slots);
  return filled_by_kernel({slots.sym_size(0), cache.sym_size(1), cache.sym_size(3)}, cache);
}

std::tuple<Tensor, Tensor> prefill_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t window,
                                             double softcap, std::optional<double> scale, const OptionalTensor& tiles) {
  check_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, {true, window, softcap, scale}, tiles);
  return {filled_by_kernel(q.sym_sizes(), q), in_accumulation_type({q.sym_size(1), q.sym_size(0)}, q)};
}

Tensor prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, const OptionalTensor& head_map, int64_t window, double softcap,
                      std::optional<double> scale, const OptionalTensor& tiles) {
  check_prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, {true, window, softcap, scale}, tiles);
  return filled_by_kernel(q.sym_sizes(), q);
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, Meta, m) {
  m.impl("decode_attention", decode_attention);
  m.impl("decode_attend", decode_attend);
  m.impl("append_to_cache", append_to_cache);
  m.impl("read_cache", read_cache);
  m.impl("prefill_attention", prefill_attention);
  m.impl("prefill_attend", prefill_attend);
}

}  // namespace uniattn::meta
