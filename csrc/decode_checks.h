// Argument checks of the operators on caches of pages; messages name the argument, what it is and what is needed.
// Shapes are checked from metadata alone, so that meta kernels share the functions; values by the check_*_values
// functions, which read the tensors.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "uniattn/ops.h"

namespace uniattn {

void check_decode_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                            const at::Tensor& page_table, const at::Tensor& lengths, int64_t max_length,
                            const AttentionOptions& options);
void check_decode_attend(const at::Tensor& probs, const at::Tensor& v_cache, const at::Tensor& page_table,
                         const at::Tensor& lengths, const std::optional<at::Tensor>& head_map, int64_t window);
void check_append_to_cache(const at::Tensor& cache, const at::Tensor& x, const at::Tensor& slots);
void check_read_cache(const at::Tensor& cache, const at::Tensor& slots);
void check_prefill(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens_q,
                   const at::Tensor& cu_seqlens_k, const AttentionOptions& options,
                   const std::optional<at::Tensor>& tiles);
void check_prefill_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const at::Tensor& v,
                          const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                          const std::optional<at::Tensor>& head_map, const AttentionOptions& options,
                          const std::optional<at::Tensor>& tiles);

// Pages that hold the positions which the newest of `length` tokens sees.
struct PageRange {
  int64_t first, last;
};
PageRange visible_pages(int64_t length, int64_t window, int64_t page_size);
// The most pages that any sequence of up to max_length tokens has in sight.
int64_t most_visible_pages(int64_t max_length, int64_t window, int64_t page_size);

// The lengths, each in [1, max_length], after checking that the pages in sight lie in the cache.
std::vector<int64_t> check_page_values(const at::Tensor& page_table, const at::Tensor& lengths, int64_t max_length,
                                       int64_t window, const at::Tensor& cache);
// That the rows of probs [batch, heads, columns] reach over the pages in sight.
void check_columns(const at::Tensor& probs, const std::vector<int64_t>& lengths, int64_t window, int64_t page_size);
void check_slot_values(const at::Tensor& slots, const at::Tensor& cache);
// Bounds of the queries and keys of each sequence: no sequence may have more queries than keys.
struct PrefillBounds {
  std::vector<int64_t> queries, keys;
};
PrefillBounds check_prefill_values(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens_q,
                                   const at::Tensor& cu_seqlens_k);

}  // namespace uniattn
