// From the tensors of a decoding operator to what its kernels are given. ATen alone, on any device, so that tests use
// it as well.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "checks.h"
#include "cuda/arguments.h"
#include "cuda/decode_params.h"
#include "decode_checks.h"

namespace uniattn::cuda {

// Pages, and room for what the splits leave.
struct DecodeTensors {
  at::Tensor page_table, lengths, out;  // out [batch, heads, head_dim]
  at::Tensor partial_out, maximum, total;
  int head_dim, heads, kv_heads;
  Pages pages;

  // Arguments as checked; `columns` is the width of the rows of P.
  DecodeTensors(int64_t heads_, const at::Tensor& cache, const at::Tensor& page_table_, const at::Tensor& lengths_,
                int64_t max_length, int64_t window, int64_t columns, bool leads)
      : page_table(page_table_.contiguous()),
        lengths(lengths_.contiguous()),
        head_dim(static_cast<int>(cache.size(3))),
        heads(static_cast<int>(heads_)),
        kv_heads(static_cast<int>(cache.size(1))) {
    constexpr int64_t kMaxColumns = 65535 * int64_t{kSplitColumns};  // blocks of a grid in its second dimension
    TORCH_CHECK_VALUE(columns <= kMaxColumns, "the tokens in sight take ", columns, " columns; kernels take at most ",
                      kMaxColumns);
    const int64_t batch = lengths.size(0), splits = (columns + kSplitColumns - 1) / kSplitColumns;
    const auto floats = cache.options().dtype(at::kFloat);
    out = at::empty({batch, heads, cache.size(3)}, cache.options());
    partial_out = at::empty({batch, heads, splits, cache.size(3)}, floats);
    if (leads) maximum = at::empty({batch, heads, splits}, floats), total = at::empty_like(maximum);
    pages = {.batch = static_cast<int>(batch),
             .pages = static_cast<int>(cache.size(0)),
             .page_size = static_cast<int>(cache.size(2)),
             .slots = static_cast<int>(page_table.size(1)),
             .window = static_cast<int>(std::min<int64_t>(window, std::numeric_limits<int32_t>::max())),
             .max_length = static_cast<int>(max_length),
             .columns = static_cast<int>(columns),
             .page_table = page_table.const_data_ptr<int32_t>(),
             .lengths = lengths.const_data_ptr<int32_t>()};
  }

  Partial partial() const {
    const auto data = [](const at::Tensor& x) { return x.defined() ? x.data_ptr<float>() : nullptr; };
    return {static_cast<int>(partial_out.size(2)), data(partial_out), data(maximum), data(total)};
  }
};

struct LeaderTensors : DecodeTensors {
  at::Tensor q, k_cache, v_cache, probs;
  float softcap, scale;

  LeaderTensors(const at::Tensor& q_, const at::Tensor& k_cache_, const at::Tensor& v_cache_,
                const at::Tensor& page_table_, const at::Tensor& lengths_, int64_t max_length, bool return_probs,
                const AttentionOptions& options)
      : DecodeTensors(q_.size(1), k_cache_, page_table_, lengths_, max_length, options.window,
                      most_visible_pages(max_length, options.window, k_cache_.size(2)) * k_cache_.size(2), true),
        q(q_.contiguous()),
        k_cache(k_cache_),
        v_cache(v_cache_),
        probs(at::empty({q.size(0), q.size(1), return_probs ? pages.columns : 0}, q.options().dtype(at::kFloat))),
        softcap(static_cast<float>(options.softcap)),
        scale(static_cast<float>(resolved_scale(options, q.size(2)))) {}

  float* rows() const { return probs.size(2) > 0 ? probs.data_ptr<float>() : nullptr; }
  DecodeLeaderArgs leader() const {
    return {type_of(q),
            head_dim,
            heads,
            kv_heads,
            pages,
            softcap,
            scale,
            q.const_data_ptr(),
            k_cache.const_data_ptr(),
            v_cache.const_data_ptr(),
            rows(),
            partial()};
  }
  DecodeMergeArgs merge() const { return {type_of(q), head_dim, heads, pages, partial(), rows(), out.data_ptr()}; }
};

struct FollowerTensors : DecodeTensors {
  at::Tensor probs, head_map, v_cache;  // head_map may be undefined

  FollowerTensors(const at::Tensor& probs_, const at::Tensor& v_cache_, const at::Tensor& page_table_,
                  const at::Tensor& lengths_, const std::optional<at::Tensor>& head_map_, int64_t window)
      : DecodeTensors(probs_.size(1), v_cache_, page_table_, lengths_, std::numeric_limits<int32_t>::max(), window,
                      probs_.size(2), false),
        probs(probs_.contiguous()),
        head_map(head_map_ ? head_map_->contiguous() : at::Tensor()),
        v_cache(v_cache_) {}

  DecodeFollowerArgs follower() const {
    return {type_of(v_cache),
            head_dim,
            heads,
            kv_heads,
            pages,
            probs.const_data_ptr<float>(),
            head_map.defined() ? head_map.const_data_ptr<int64_t>() : nullptr,
            v_cache.const_data_ptr(),
            partial()};
  }
  DecodeMergeArgs merge() const { return {type_of(out), head_dim, heads, pages, partial(), nullptr, out.data_ptr()}; }
};

// `rows` [tokens, kv_heads, head_dim], contiguous, and their `slots` [tokens] in a cache.
inline CacheRowsArgs cache_rows(const at::Tensor& cache, const at::Tensor& rows, const at::Tensor& slots) {
  return {.tokens = rows.size(0),
          .cache_slots = cache.size(0) * cache.size(2),
          .kv_heads = static_cast<int>(cache.size(1)),
          .page_size = static_cast<int>(cache.size(2)),
          .row_bytes = static_cast<int>(cache.size(3) * cache.element_size()),
          .slots = slots.const_data_ptr<int64_t>(),
          .cache = cache.data_ptr(),
          .rows = rows.data_ptr()};
}

}  // namespace uniattn::cuda
