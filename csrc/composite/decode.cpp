// Decoding over pages of cached keys and values out of ATen calls, for any device and dtype.
#include "composite/decode.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>

#include "checks.h"
#include "decode_checks.h"

namespace uniattn::composite {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The columns that one token of each sequence has in sight, as whole pages.
class Columns {
 public:
  // `pages` per sequence.
  Columns(const Tensor& page_table, const Tensor& lengths, int64_t window, int64_t page_size, int64_t pages)
      : page_size_(page_size) {
    const Tensor ends = lengths.to(at::kLong).unsqueeze(1);
    const Tensor begins = window > 0 ? (ends - window).clamp_min(0) : at::zeros_like(ends);
    const Tensor index = begins.floor_divide(page_size) + at::arange(pages, ends.options());
    const Tensor used = index * page_size < ends;  // entries of the table behind a sequence may hold anything
    pages_ = at::where(used, page_table.to(at::kLong).gather(1, index.remainder(page_table.size(1))), 0);
    const Tensor positions =
        (index.unsqueeze(2) * page_size + at::arange(page_size, ends.options())).flatten(1);  // [batch, columns]
    visible_ = positions.ge(begins).logical_and(positions.lt(ends)).unsqueeze(1);
  }

  // [batch, kv_heads, columns, head_dim], 0 where nothing is seen.
  Tensor read(const Tensor& cache) const {
    const Tensor x = cache.index({pages_}).transpose(1, 2).flatten(2, 3);
    return x.to(accumulation_type(cache.scalar_type())).masked_fill(visible_.logical_not().unsqueeze(3), 0);
  }
  const Tensor& visible() const { return visible_; }  // [batch, 1, columns]

 private:
  int64_t page_size_;
  Tensor pages_, visible_;
};

// [batch, heads, n] as [batch, kv_heads, heads / kv_heads, n] and back.
Tensor grouped(const Tensor& x, int64_t kv_heads) {
  return x.unflatten(1, {kv_heads, x.size(1) / kv_heads});
}

Tensor weighted(const Tensor& probs, const Tensor& values, at::ScalarType type) {
  return at::matmul(grouped(probs, values.size(1)), values).flatten(1, 2).to(type);
}

}  // namespace

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const Tensor& page_table, const Tensor& lengths, int64_t max_length,
                                            bool return_probs, int64_t window, double softcap,
                                            std::optional<double> scale) {
  const AttentionOptions options{true, window, softcap, scale};
  check_decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, options);
  check_page_values(page_table, lengths, max_length, window, k_cache);
  const int64_t page_size = k_cache.size(2);
  const Columns columns(page_table, lengths, window, page_size, most_visible_pages(max_length, window, page_size));
  const Tensor keys = columns.read(k_cache);
  Tensor scores = at::matmul(grouped(q.to(keys.scalar_type()), keys.size(1)), keys.transpose(2, 3)).flatten(1, 2);
  scores = scores * resolved_scale(options, q.size(2));
  if (softcap > 0) scores = (scores / softcap).tanh() * softcap;
  const Tensor probs =
      scores.masked_fill(columns.visible().logical_not(), -std::numeric_limits<double>::infinity()).softmax(2);
  const Tensor out = weighted(probs, columns.read(v_cache), q.scalar_type());
  return {out, return_probs ? probs : at::empty({q.size(0), q.size(1), 0}, probs.options())};
}

Tensor decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                     const OptionalTensor& head_map, int64_t window) {
  check_decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  check_head_map_values(head_map, probs.size(1));
  const int64_t page_size = v_cache.size(2);
  check_columns(probs, check_page_values(page_table, lengths, std::numeric_limits<int32_t>::max(), window, v_cache),
                window, page_size);
  const Columns columns(page_table, lengths, window, page_size, probs.size(2) / page_size);
  return weighted(head_map ? probs.index_select(1, *head_map) : probs, columns.read(v_cache), v_cache.scalar_type());
}

static void append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  check_append_to_cache(cache, x, slots);
  check_slot_values(slots, cache);
  const int64_t page_size = cache.size(2);
  cache.transpose(1, 2).index_put_({slots.floor_divide(page_size), slots.remainder(page_size)}, x);
}

static Tensor read_cache(const Tensor& cache, const Tensor& slots) {
  check_read_cache(cache, slots);
  check_slot_values(slots, cache);
  const int64_t page_size = cache.size(2);
  return cache.transpose(1, 2).index({slots.floor_divide(page_size), slots.remainder(page_size)});
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("decode_attention", decode_attention);
  m.impl("decode_attend", decode_attend);
  m.impl("append_to_cache", append_to_cache);
  m.impl("read_cache", read_cache);
}

}  // namespace uniattn::composite
