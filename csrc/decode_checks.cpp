#include "decode_checks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "probs_tiles.h"

namespace uniattn {

using at::Tensor;

namespace {

void check_heads_divide(const Tensor& x, int64_t dimension, const char* name, const c10::SymInt& heads) {
  TORCH_CHECK_VALUE(x.sym_size(dimension) > 0 && heads % x.sym_size(dimension) == 0, name, " has ",
                    x.sym_size(dimension), " heads, which does not divide the ", heads, " query heads");
}

void check_cache(const Tensor& cache, const char* name) {
  TORCH_CHECK_VALUE(cache.dim() == 4 && cache.sym_size(2) > 0 && cache.sym_size(3) > 0, name,
                    " must be [pages, kv_heads, page_size, head_dim], got ", cache.sym_sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(cache.scalar_type()), name, " must have a floating dtype, got ",
                    cache.scalar_type());
  TORCH_CHECK_VALUE(cache.is_contiguous(), name, " must be contiguous");
}

void check_pages(const Tensor& page_table, const Tensor& lengths, const c10::SymInt& batch, const Tensor& cache) {
  TORCH_CHECK_VALUE(page_table.scalar_type() == at::kInt && page_table.dim() == 2 && page_table.sym_size(0) == batch &&
                        page_table.sym_size(1) > 0,
                    "page_table must be int32 [batch, slots] with batch ", batch, " and at least one slot, got ",
                    page_table.scalar_type(), " ", page_table.sym_sizes());
  TORCH_CHECK_VALUE(lengths.scalar_type() == at::kInt && lengths.dim() == 1 && lengths.sym_size(0) == batch,
                    "lengths must be int32 [batch] = [", batch, "], got ", lengths.scalar_type(), " ",
                    lengths.sym_sizes());
  check_on_device_of(page_table, "page_table", cache, "the cache");
  check_on_device_of(lengths, "lengths", cache, "the cache");
}

void check_options(const AttentionOptions& options) {
  TORCH_CHECK_VALUE(options.window >= 0, "window must be 0 (off) or the number of visible tokens, got ",
                    options.window);
  TORCH_CHECK_VALUE(options.softcap >= 0 && std::isfinite(options.softcap), "softcap must be 0 (off) or positive, got ",
                    options.softcap);
  TORCH_CHECK_VALUE(!options.scale || std::isfinite(*options.scale), "scale must be finite, got ", *options.scale);
}

void check_slots(const Tensor& slots, const Tensor& cache) {
  TORCH_CHECK_VALUE(slots.scalar_type() == at::kLong && slots.dim() == 1, "slots must be int64 [tokens], got ",
                    slots.scalar_type(), " ", slots.sym_sizes());
  check_on_device_of(slots, "slots", cache, "cache");
}

void check_bounds(const Tensor& cu_seqlens, const char* name, const Tensor& q) {
  TORCH_CHECK_VALUE(cu_seqlens.scalar_type() == at::kInt && cu_seqlens.dim() == 1 && cu_seqlens.sym_size(0) >= 1, name,
                    " must be int32 [sequences + 1], got ", cu_seqlens.scalar_type(), " ", cu_seqlens.sym_sizes());
  check_on_device_of(cu_seqlens, name, q, "q");
}

void check_tiles(const Tensor& tiles, const Tensor& q, const Tensor& k, const AttentionOptions& options) {
  check_same_kind(tiles, "tiles", q, "q");
  const c10::SymInt needed = prefill_tiles_size(q.sym_size(0), k.sym_size(0), options.window);
  TORCH_CHECK_VALUE(
      tiles.dim() == 2 && tiles.sym_size(0) == q.sym_size(1) && tiles.sym_size(1) >= needed && tiles.is_contiguous(),
      "tiles must be contiguous [heads, elements] = [", q.sym_size(1), ", at least ", needed, "], got ",
      tiles.sym_sizes());
}

}  // namespace

void check_decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& page_table,
                            const Tensor& lengths, int64_t max_length, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(q.dim() == 3 && q.sym_size(1) > 0, "q must be [batch, heads, head_dim], got ", q.sym_sizes());
  check_cache(k_cache, "k_cache");
  check_like(v_cache, "v_cache", k_cache, "k_cache");
  TORCH_CHECK_VALUE(v_cache.is_contiguous(), "v_cache must be contiguous");
  check_same_kind(q, "q", k_cache, "k_cache");
  TORCH_CHECK_VALUE(q.sym_size(2) == k_cache.sym_size(3), "q must have the head_dim of k_cache ", k_cache.sym_sizes(),
                    ", got ", q.sym_sizes());
  check_heads_divide(k_cache, 1, "k_cache", q.sym_size(1));
  check_pages(page_table, lengths, q.sym_size(0), k_cache);
  TORCH_CHECK_VALUE(max_length > 0 && max_length <= std::numeric_limits<int32_t>::max(),
                    "max_length must be positive and fit int32, got ", max_length);
  check_options(options);
}

void check_decode_attend(const Tensor& probs, const Tensor& v_cache, const Tensor& page_table, const Tensor& lengths,
                         const std::optional<Tensor>& head_map, int64_t window) {
  check_cache(v_cache, "v_cache");
  TORCH_CHECK_VALUE(probs.dim() == 3 && probs.sym_size(1) > 0 && probs.sym_size(2) % v_cache.sym_size(2) == 0,
                    "probs must be [batch, heads, columns] with whole pages of ", v_cache.sym_size(2),
                    " columns, as decode_attention returns it, got ", probs.sym_sizes());
  const auto type = accumulation_type(v_cache.scalar_type());
  TORCH_CHECK_VALUE(probs.scalar_type() == type, "probs must be ", type, " for a cache of ", v_cache.scalar_type(),
                    ", got ", probs.scalar_type());
  check_on_device_of(probs, "probs", v_cache, "v_cache");
  check_heads_divide(v_cache, 1, "v_cache", probs.sym_size(1));
  check_pages(page_table, lengths, probs.sym_size(0), v_cache);
  TORCH_CHECK_VALUE(window >= 0, "window must be 0 (off) or the number of visible tokens, got ", window);
  if (!head_map) return;
  TORCH_CHECK_VALUE(
      head_map->scalar_type() == at::kLong && head_map->dim() == 1 && head_map->sym_size(0) == probs.sym_size(1),
      "head_map must be int64 [heads] = [", probs.sym_size(1), "], got ", head_map->scalar_type(), " ",
      head_map->sym_sizes());
  check_on_device_of(*head_map, "head_map", v_cache, "v_cache");
}

void check_append_to_cache(const Tensor& cache, const Tensor& x, const Tensor& slots) {
  check_cache(cache, "cache");
  check_slots(slots, cache);
  check_same_kind(x, "x", cache, "cache");
  TORCH_CHECK_VALUE(x.dim() == 3 && x.sym_size(0) == slots.sym_size(0) && x.sym_size(1) == cache.sym_size(1) &&
                        x.sym_size(2) == cache.sym_size(3),
                    "x must be [tokens, kv_heads, head_dim] = [", slots.sym_size(0), ", ", cache.sym_size(1), ", ",
                    cache.sym_size(3), "], got ", x.sym_sizes());
}

void check_read_cache(const Tensor& cache, const Tensor& slots) {
  check_cache(cache, "cache");
  check_slots(slots, cache);
}

void check_prefill(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                   const Tensor& cu_seqlens_k, const AttentionOptions& options, const std::optional<Tensor>& tiles) {
  TORCH_CHECK_VALUE(q.dim() == 3 && q.sym_size(1) > 0 && q.sym_size(2) > 0, "q must be [tokens, heads, head_dim], got ",
                    q.sym_sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(q.scalar_type()), "q must have a floating dtype, got ", q.scalar_type());
  const auto check_keys = [&](const Tensor& x, const char* name) {
    check_same_kind(x, name, q, "q");
    TORCH_CHECK_VALUE(x.dim() == 3 && x.sym_size(0) == k.sym_size(0) && x.sym_size(2) == q.sym_size(2), name,
                      " must be [keys, kv_heads, head_dim] with the keys of k ", k.sym_sizes(),
                      " and the head_dim of q ", q.sym_sizes(), ", got ", x.sym_sizes());
    check_heads_divide(x, 1, name, q.sym_size(1));
  };
  check_keys(k, "k");
  check_keys(v, "v");
  check_bounds(cu_seqlens_q, "cu_seqlens_q", q);
  check_bounds(cu_seqlens_k, "cu_seqlens_k", q);
  TORCH_CHECK_VALUE(cu_seqlens_k.sym_sizes() == cu_seqlens_q.sym_sizes(),
                    "cu_seqlens_k must have the sequences of cu_seqlens_q ", cu_seqlens_q.sym_sizes(), ", got ",
                    cu_seqlens_k.sym_sizes());
  TORCH_CHECK_VALUE(options.causal, "causal must be true: queries are the last tokens of their sequences");
  check_options(options);
  if (tiles) check_tiles(*tiles, q, k, options);
}

void check_prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v,
                          const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, const std::optional<Tensor>& head_map,
                          const AttentionOptions& options, const std::optional<Tensor>& tiles) {
  check_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, options, tiles);
  check_row_statistic(lse, "lse", q);
  check_head_map(head_map, q);
}

PageRange visible_pages(int64_t length, int64_t window, int64_t page_size) {
  const int64_t first = window > 0 ? std::max<int64_t>(0, length - window) : 0;
  return {first / page_size, (length + page_size - 1) / page_size};
}

int64_t most_visible_pages(int64_t max_length, int64_t window, int64_t page_size) {
  const int64_t all = (max_length + page_size - 1) / page_size;
  return window > 0 && window < max_length ? std::min(all, (window + page_size - 2) / page_size + 1) : all;
}

std::vector<int64_t> check_page_values(const Tensor& page_table, const Tensor& lengths, int64_t max_length,
                                       int64_t window, const Tensor& cache) {
  const Tensor table = page_table.cpu().contiguous(), counts = lengths.cpu().contiguous();
  const int64_t slots = table.size(1), pages = cache.size(0), page_size = cache.size(2);
  std::vector<int64_t> result(counts.const_data_ptr<int32_t>(), counts.const_data_ptr<int32_t>() + counts.numel());
  for (size_t b = 0; b < result.size(); ++b) {
    TORCH_CHECK_VALUE(result[b] > 0 && result[b] <= max_length, "lengths[", b, "] is ", result[b],
                      ", but must be from 1 to ", max_length);
    const PageRange range = visible_pages(result[b], window, page_size);
    TORCH_CHECK_VALUE(range.last - range.first <= slots, "lengths[", b, "] is ", result[b], ": the newest token sees ",
                      range.last - range.first, " pages, but page_table has ", slots, " slots");
    for (int64_t page = range.first; page < range.last; ++page) {
      const int32_t entry = table.const_data_ptr<int32_t>()[static_cast<int64_t>(b) * slots + page % slots];
      TORCH_CHECK_VALUE(entry >= 0 && entry < pages, "page_table[", b, ", ", page % slots, "] is ", entry,
                        ", but the cache has pages 0 to ", pages - 1);
    }
  }
  return result;
}

void check_columns(const Tensor& probs, const std::vector<int64_t>& lengths, int64_t window, int64_t page_size) {
  for (size_t b = 0; b < lengths.size(); ++b) {
    const PageRange range = visible_pages(lengths[b], window, page_size);
    TORCH_CHECK_VALUE((range.last - range.first) * page_size <= probs.size(2), "probs has ", probs.size(2),
                      " columns, but lengths[", b, "] = ", lengths[b], " needs ",
                      (range.last - range.first) * page_size);
  }
}

void check_slot_values(const Tensor& slots, const Tensor& cache) {
  const Tensor values = slots.cpu().contiguous();
  const int64_t size = cache.size(0) * cache.size(2);
  for (int64_t t = 0; t < values.numel(); ++t) {
    const int64_t slot = values.const_data_ptr<int64_t>()[t];
    TORCH_CHECK_VALUE(slot >= 0 && slot < size, "slots[", t, "] is ", slot, ", but the cache has slots 0 to ",
                      size - 1);
  }
}

PrefillBounds check_prefill_values(const Tensor& q, const Tensor& k, const Tensor& cu_seqlens_q,
                                   const Tensor& cu_seqlens_k) {
  PrefillBounds bounds{check_sequences(cu_seqlens_q, q.size(0)), check_sequences(cu_seqlens_k, k.size(0))};
  for (size_t s = 0; s + 1 < bounds.queries.size(); ++s) {
    const int64_t queries = bounds.queries[s + 1] - bounds.queries[s], keys = bounds.keys[s + 1] - bounds.keys[s];
    TORCH_CHECK_VALUE(queries <= keys, "sequence ", s, " has ", queries, " queries in cu_seqlens_q but ", keys,
                      " keys in cu_seqlens_k: the queries are its last tokens");
  }
  return bounds;
}

}  // namespace uniattn
