// Operators of generation, callable from C++: caches of pages, chunked prefill and decoding. They have no gradients.
//
// A cache is [pages, kv_heads, page_size, head_dim], contiguous, shared by many sequences. Page p of a sequence, its
// positions from p * page_size, is page_table[b, p mod slots] (int32 [batch, slots]): as many slots as pages, or, where
// a window limits sight, only those in sight. lengths int32 [batch] counts the tokens of a sequence, the newest
// included.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "uniattn/ops.h"

namespace uniattn {

// Writes x [tokens, kv_heads, head_dim]; token t goes to slot slots[t] = page * page_size + place in the page, int64
// [tokens].
void append_to_cache(const at::Tensor& cache, const at::Tensor& x, const at::Tensor& slots);
// The reverse: [tokens, kv_heads, head_dim].
at::Tensor read_cache(const at::Tensor& cache, const at::Tensor& slots);

struct DecodeResult {
  at::Tensor out;    // [batch, heads, head_dim]
  at::Tensor probs;  // [batch, heads, columns] float32; no columns unless asked for
};

// Attention of the newest token of each sequence, q [batch, heads, head_dim], over its cache, in which its key and
// value are already. Column c of the row of P is position c of the pages in sight, counted from the first of them; 0
// where nothing is seen. max_length bounds the lengths. options.causal is not looked at.
DecodeResult decode_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                              const at::Tensor& page_table, const at::Tensor& lengths, int64_t max_length,
                              bool return_probs, const AttentionOptions& options = {});
// A follower's: its own values under the leader's row, query head n reading row head_map[n] (int64 [heads]). v_cache
// may have other heads than the leader's, but the same pages.
at::Tensor decode_attend(const at::Tensor& probs, const at::Tensor& v_cache, const at::Tensor& page_table,
                         const at::Tensor& lengths, const std::optional<at::Tensor>& head_map = std::nullopt,
                         int64_t window = 0);

struct PrefillResult {
  at::Tensor out;  // [tokens, heads, head_dim]
  at::Tensor lse;  // [heads, tokens] float32
};

// Elements per head that P of `queries` packed tokens over `keys` takes at most, however they are parted in sequences.
int64_t most_prefill_elements(int64_t queries, int64_t keys, int64_t window);

// Causal attention of the last tokens of sequences, q [tokens, heads, head_dim], over all their tokens, k and v [keys,
// kv_heads, head_dim], whose heads may differ in number. Both are packed: cu_seqlens_q and cu_seqlens_k int32
// [sequences + 1]; no sequence has more queries than keys. `tiles`, contiguous [heads, elements] in the dtype of q,
// becomes P for followers that read it with the same bounds and options; without, they rebuild P.
PrefillResult prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                                const AttentionOptions& options = {},
                                const std::optional<at::Tensor>& tiles = std::nullopt);
// A follower's, with the leader's q, k, lse and tiles.
at::Tensor prefill_attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& lse, const at::Tensor& v,
                          const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                          const std::optional<at::Tensor>& head_map = std::nullopt,
                          const AttentionOptions& options = {}, const std::optional<at::Tensor>& tiles = std::nullopt);

}  // namespace uniattn
