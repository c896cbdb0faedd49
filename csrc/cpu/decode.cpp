// CPU kernels of decoding over pages of cached keys and values, for float32 and bfloat16; other dtypes and pages that
// are not whole vectors go to the composite. A sequence is cut into splits of fixed size, so results do not depend on
// the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "composite/decode.h"
#include "cpu/kernels.h"
#include "cpu/types.h"
#include "decode_checks.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kSplitKeys = 256;         // tokens at least in a split: the work of one item
constexpr int64_t kWorthAThread = 1 << 17;  // bytes of cache

bool takes(const Tensor& cache) {
  return is_supported(cache) && cache.size(2) % kColumnMultiple == 0;
}

// Positions [begin, end) of a sequence.
struct Split {
  int64_t sequence, begin, end;
};

class Splits {
 public:
  Splits(const std::vector<int64_t>& lengths, int64_t window, int64_t page_size)
      : pages_((kSplitKeys + page_size - 1) / page_size), page_size_(page_size) {
    for (size_t b = 0; b < lengths.size(); ++b) {
      const PageRange range = visible_pages(lengths[b], window, page_size);
      const int64_t begin = window > 0 ? std::max<int64_t>(0, lengths[b] - window) : 0;
      first_page_.push_back(range.first);
      columns_.push_back((range.last - range.first) * page_size);
      first_split_.push_back(static_cast<int64_t>(items_.size()));
      for (int64_t page = range.first; page < range.last; page += pages_) {
        items_.push_back({static_cast<int64_t>(b), std::max(begin, page * page_size),
                          std::min(lengths[b], (page + pages_) * page_size)});
      }
    }
    first_split_.push_back(static_cast<int64_t>(items_.size()));
  }

  const std::vector<Split>& items() const { return items_; }
  int64_t count() const { return static_cast<int64_t>(items_.size()); }
  int64_t first_page(int64_t sequence) const { return first_page_[sequence]; }
  int64_t first_split(int64_t sequence) const { return first_split_[sequence]; }
  int64_t splits_of(int64_t sequence) const { return first_split_[sequence + 1] - first_split_[sequence]; }
  int64_t split_columns() const { return pages_ * page_size_; }
  // Columns of the sequence's rows that belong to pages in sight.
  int64_t columns(int64_t sequence) const { return columns_[sequence]; }

 private:
  int64_t pages_, page_size_;
  std::vector<Split> items_;
  std::vector<int64_t> first_page_, first_split_, columns_;
};

CachedHeads cached_heads(const Tensor& cache, const Tensor& table, int64_t sequence) {
  return {cache.const_data_ptr(), table.const_data_ptr<int32_t>() + sequence * table.size(1),
          table.size(1),          cache.size(1),
          cache.size(2),          cache.size(3),
          type_of(cache)};
}

// What the splits leave to be brought together.
struct Partial {
  Tensor out;             // [splits, heads, head_dim] float32
  Tensor maximum, total;  // [splits, heads], the leader's

  Partial(int64_t splits, int64_t heads, int64_t head_dim, bool leader) {
    out = at::empty({splits, heads, head_dim}, at::kFloat);
    if (leader) maximum = at::empty({splits, heads}, at::kFloat), total = at::empty_like(maximum);
  }
};

int64_t grain(const Splits& splits, const Tensor& cache) {
  const int64_t item = splits.split_columns() * cache.size(1) * cache.size(3) * cache.element_size();
  return std::max<int64_t>(1, kWorthAThread / item);
}

// out [batch, heads, head_dim] from the splits; `probs` [batch, heads, columns], where defined, becomes P.
Tensor merge(const Splits& splits, const Partial& partial, const Tensor& probs, const Tensor& cache, int64_t batch) {
  const int64_t heads = partial.out.size(1), d = partial.out.size(2);
  Tensor out = at::empty({batch, heads, d}, cache.options());
  at::parallel_for(
      0, batch * heads, std::max<int64_t>(1, 65536 / splits.split_columns()), [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
          const int64_t b = item / heads, h = item % heads, split = splits.first_split(b);
          const auto statistic = [&](const Tensor& x) {
            return x.defined() ? x.const_data_ptr<float>() + split * heads + h : nullptr;
          };
          float* row = probs.defined() ? probs.data_ptr<float>() + item * probs.size(2) : nullptr;
          kernels().decode_merge({splits.splits_of(b), d, partial.out.const_data_ptr<float>() + (split * heads + h) * d,
                                  statistic(partial.maximum), statistic(partial.total), heads * d, heads, type_of(out),
                                  static_cast<char*>(out.data_ptr()) + item * d * out.element_size(), row,
                                  splits.split_columns(), splits.columns(b)});
          if (row != nullptr) std::fill(row + splits.columns(b), row + probs.size(2), 0.f);
        }
      });
  return out;
}

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                            const Tensor& page_table, const Tensor& lengths, int64_t max_length,
                                            bool return_probs, int64_t window, double softcap,
                                            std::optional<double> scale) {
  const AttentionOptions options{true, window, softcap, scale};
  check_decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, options);
  if (!takes(k_cache)) {
    return composite::decode_attention(q, k_cache, v_cache, page_table, lengths, max_length, return_probs, window,
                                       softcap, scale);
  }
  const int64_t batch = q.size(0), heads = q.size(1), d = q.size(2), page_size = k_cache.size(2);
  const Splits splits(check_page_values(page_table, lengths, max_length, window, k_cache), window, page_size);
  const Tensor queries = q.contiguous(), table = page_table.contiguous();
  const int64_t width = return_probs ? most_visible_pages(max_length, window, page_size) * page_size : 0;
  Tensor probs = at::empty({batch, heads, width}, q.options().dtype(at::kFloat));
  const Partial partial(splits.count(), heads, d, true);
  at::parallel_for(0, splits.count(), grain(splits, k_cache), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(return_probs ? 0 : heads * splits.split_columns());
    std::vector<float*> rows(heads);
    for (int64_t item = first; item < last; ++item) {
      const Split& split = splits.items()[item];
      // Rows that nobody asks for live in the cache of the processor, one split at a time.
      const int64_t first_page = return_probs ? splits.first_page(split.sequence) : split.begin / page_size;
      for (int64_t h = 0; h < heads; ++h) {
        rows[h] = return_probs ? probs.data_ptr<float>() + (split.sequence * heads + h) * width
                               : scratch.data() + h * splits.split_columns();
      }
      kernels().decode_leader(
          {cached_heads(k_cache, table, split.sequence), cached_heads(v_cache, table, split.sequence),
           static_cast<const char*>(queries.const_data_ptr()) + split.sequence * heads * d * q.element_size(), heads,
           split.begin, split.end, first_page, static_cast<float>(resolved_scale(options, d)),
           static_cast<float>(softcap), rows.data(), partial.maximum.data_ptr<float>() + item * heads,
           partial.total.data_ptr<float>() + item * heads, partial.out.data_ptr<float>() + item * heads * d});
    }
  });
  return {merge(splits, partial, return_probs ? probs : Tensor(), v_cache, batch), probs};
}

Tensor decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                     const OptionalTensor& head_map, int64_t window) {
  check_decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  if (!takes(v_cache)) return composite::decode_attend(probs, v_cache, page_table, lengths, head_map, window);
  const int64_t batch = probs.size(0), heads = probs.size(1), d = v_cache.size(3), page_size = v_cache.size(2);
  check_head_map_values(head_map, heads);
  const std::vector<int64_t> counts =
      check_page_values(page_table, lengths, std::numeric_limits<int32_t>::max(), window, v_cache);
  check_columns(probs, counts, window, page_size);
  const Splits splits(counts, window, page_size);
  const Tensor weights = probs.contiguous(), table = page_table.contiguous();
  const Tensor map = head_map ? head_map->contiguous() : at::arange(heads, at::kLong);
  const Partial partial(splits.count(), heads, d, false);
  at::parallel_for(0, splits.count(), grain(splits, v_cache), [&](int64_t first, int64_t last) {
    std::vector<float*> rows(heads);
    for (int64_t item = first; item < last; ++item) {
      const Split& split = splits.items()[item];
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t row = split.sequence * heads + map.const_data_ptr<int64_t>()[h];
        rows[h] = weights.data_ptr<float>() + row * weights.size(2);
      }
      kernels().decode_follower({{},
                                 cached_heads(v_cache, table, split.sequence),
                                 nullptr,
                                 heads,
                                 split.begin,
                                 split.end,
                                 splits.first_page(split.sequence),
                                 1,
                                 0,
                                 rows.data(),
                                 nullptr,
                                 nullptr,
                                 partial.out.data_ptr<float>() + item * heads * d});
    }
  });
  return merge(splits, partial, Tensor(), v_cache, batch);
}

// Calls copy(cached row, row of x) for every token and head, rows of head_dim elements.
template <class Copy>
void for_each_row(const Tensor& cache, const Tensor& x, const Tensor& slots, Copy copy) {
  const int64_t heads = cache.size(1), page_size = cache.size(2);
  const int64_t bytes = cache.size(3) * cache.element_size();
  char *cached = static_cast<char*>(cache.data_ptr()), *rows = static_cast<char*>(x.data_ptr());
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < slots.numel(); ++t) {
    const int64_t page = slot[t] / page_size, offset = slot[t] % page_size;
    for (int64_t h = 0; h < heads; ++h) {
      copy(cached + ((page * heads + h) * page_size + offset) * bytes, rows + (t * heads + h) * bytes, bytes);
    }
  }
}

void append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  check_append_to_cache(cache, x, slots);
  check_slot_values(slots, cache);
  for_each_row(cache, x.contiguous(), slots.contiguous(),
               [](char* cached, const char* row, int64_t bytes) { std::memcpy(cached, row, bytes); });
}

Tensor read_cache(const Tensor& cache, const Tensor& slots) {
  check_read_cache(cache, slots);
  check_slot_values(slots, cache);
  const Tensor out = at::empty({slots.size(0), cache.size(1), cache.size(3)}, cache.options());
  for_each_row(cache, out, slots.contiguous(),
               [](const char* cached, char* row, int64_t bytes) { std::memcpy(row, cached, bytes); });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("decode_attention", decode_attention);
  m.impl("decode_attend", decode_attend);
  m.impl("append_to_cache", append_to_cache);
  m.impl("read_cache", read_cache);
}

}  // namespace uniattn::cpu
