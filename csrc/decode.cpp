#include "uniattn/decode.h"

#include "dispatch.h"
#include "probs_tiles.h"

namespace uniattn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Scale = std::optional<double>;
using TwoTensors = std::tuple<Tensor, Tensor>;

void append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  static const auto op = find_operator<void(const Tensor&, const Tensor&, const Tensor&)>("uniattn::append_to_cache");
  op.call(cache, x, slots);
}

Tensor read_cache(const Tensor& cache, const Tensor& slots) {
  static const auto op = find_operator<Tensor(const Tensor&, const Tensor&)>("uniattn::read_cache");
  return op.call(cache, slots);
}

DecodeResult decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                              const Tensor& lengths, int64_t max_length, bool return_probs, const AttentionOptions& o) {
  static const auto op =
      find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, bool,
                               int64_t, double, Scale)>("uniattn::decode_attention");
  auto [out, probs] =
      op.call(q, k_cache, v_cache, page_table, lengths, max_length, return_probs, o.window, o.softcap, o.scale);
  return {out, probs};
}

Tensor decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                     const OptionalTensor& head_map, int64_t window) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, int64_t)>(
          "uniattn::decode_attend");
  return op.call(probs, v_cache, page_table, lengths, head_map, window);
}

int64_t most_prefill_elements(int64_t queries, int64_t keys, int64_t window) {
  return prefill_tiles_size(queries, keys, window).expect_int();
}

PrefillResult prefill_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                                const Tensor& cu_seqlens_k, const AttentionOptions& o, const OptionalTensor& tiles) {
  static const auto op =
      find_operator<TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t,
                               double, Scale, const OptionalTensor&)>("uniattn::prefill_attention");
  auto [out, lse] = op.call(q, k, v, cu_seqlens_q, cu_seqlens_k, o.window, o.softcap, o.scale, tiles);
  return {out, lse};
}

Tensor prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, const OptionalTensor& head_map, const AttentionOptions& o,
                      const OptionalTensor& tiles) {
  static const auto op =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const OptionalTensor&, int64_t, double, Scale, const OptionalTensor&)>(
          "uniattn::prefill_attend");
  return op.call(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, o.window, o.softcap, o.scale, tiles);
}

}  // namespace uniattn
