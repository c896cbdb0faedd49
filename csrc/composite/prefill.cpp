// Attention of the last tokens of sequences over all their tokens, out of ATen calls: blocks of query rows against the
// keys they can see, so memory is linear in tokens.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "checks.h"
#include "composite/decode.h"
#include "decode_checks.h"
#include "probs_tiles.h"

namespace uniattn::composite {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlockRows = 256;

// Rows [row, row + rows) of q and the keys [key, key + keys) that one of them sees; row 0 of the block is at `position`
// among the sequence's keys, which begin at `sequence`. A kept block of P is tiles[:, tile : tile + rows * keys].
struct Block {
  int64_t row, rows, key, keys, position, sequence, tile;

  Tensor kept(const Tensor& tiles) const {
    return tiles.narrow(1, tile, rows * keys).view({tiles.size(0), rows, keys});
  }
};

std::vector<Block> blocks(const PrefillBounds& bounds, int64_t window, bool kept) {
  const int64_t block_rows = kept ? kTileRows : kBlockRows;
  std::vector<Block> result;
  int64_t tile = 0;
  for (size_t s = 0; s + 1 < bounds.queries.size(); ++s) {
    const int64_t past = bounds.keys[s + 1] - bounds.keys[s] - (bounds.queries[s + 1] - bounds.queries[s]);
    for (int64_t row = bounds.queries[s]; row < bounds.queries[s + 1]; row += block_rows) {
      const int64_t rows = std::min(block_rows, bounds.queries[s + 1] - row);
      const int64_t position = past + row - bounds.queries[s];
      const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
      const int64_t keys = position + rows - first;
      result.push_back({row, rows, bounds.keys[s] + first, keys, position, bounds.keys[s], tile});
      tile += rows * keys;
    }
  }
  return result;
}

// [heads, count, head_dim] in the accumulation dtype, heads of a KV group repeated to `heads`.
Tensor slice(const Tensor& x, int64_t begin, int64_t count, int64_t heads) {
  const Tensor part = x.narrow(0, begin, count).transpose(0, 1).to(accumulation_type(x.scalar_type()));
  return part.size(0) == heads ? part : part.repeat_interleave(heads / part.size(0), 0);
}

// Scores of a block [heads, rows, keys], -inf where hidden.
Tensor scores(const Tensor& q, const Tensor& k, const Block& b, const AttentionOptions& options) {
  const Tensor keys = slice(k, b.key, b.keys, q.size(1));
  Tensor s = at::bmm(slice(q, b.row, b.rows, q.size(1)), keys.transpose(1, 2)) * resolved_scale(options, q.size(2));
  if (options.softcap > 0) s = (s / options.softcap).tanh() * options.softcap;
  const auto index = at::TensorOptions().dtype(at::kLong).device(q.device());
  const int64_t key = b.key - b.sequence;
  const Tensor distance =
      at::arange(b.position, b.position + b.rows, index).unsqueeze(1) - at::arange(key, key + b.keys, index);
  Tensor hidden = distance.lt(0);
  if (options.window > 0) hidden = hidden.logical_or(distance.ge(options.window));
  return s.masked_fill(hidden, -std::numeric_limits<double>::infinity());
}

void write_output(const Tensor& probs, const Tensor& v, const Block& b, const Tensor& out) {
  out.narrow(0, b.row, b.rows).copy_(at::bmm(probs, slice(v, b.key, b.keys, probs.size(0))).transpose(0, 1));
}

}  // namespace

std::tuple<Tensor, Tensor> prefill_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t window,
                                             double softcap, std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, options, tiles);
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulation_type(q.scalar_type())));
  for (const Block& b : blocks(check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k), window, tiles.has_value())) {
    const Tensor s = scores(q, k, b, options), block_lse = s.logsumexp(2);
    const Tensor probs = (s - block_lse.unsqueeze(2)).exp();
    lse.narrow(1, b.row, b.rows).copy_(block_lse);
    if (tiles) b.kept(*tiles).copy_(probs);
    write_output(probs, v, b, out);
  }
  return {out, lse};
}

Tensor prefill_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens_q,
                      const Tensor& cu_seqlens_k, const OptionalTensor& head_map, int64_t window, double softcap,
                      std::optional<double> scale, const OptionalTensor& tiles) {
  const AttentionOptions options{true, window, softcap, scale};
  check_prefill_attend(q, k, lse, v, cu_seqlens_q, cu_seqlens_k, head_map, options, tiles);
  check_head_map_values(head_map, q.size(1));
  const Tensor out = at::empty(q.sizes(), q.options());
  for (const Block& b : blocks(check_prefill_values(q, k, cu_seqlens_q, cu_seqlens_k), window, tiles.has_value())) {
    const Tensor probs = tiles ? b.kept(*tiles).to(accumulation_type(q.scalar_type()))
                               : (scores(q, k, b, options) - lse.narrow(1, b.row, b.rows).unsqueeze(2)).exp();
    write_output(head_map ? probs.index_select(0, *head_map) : probs, v, b, out);
  }
  return out;
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("prefill_attention", prefill_attention);
  m.impl("prefill_attend", prefill_attend);
}

}  // namespace uniattn::composite
