// Attention out of ATen calls, for any device and dtype: blocks of query rows against the keys they can see, so memory
// is linear in tokens, unless P is kept. The hand-written kernels fall back to it and are tested against it.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "composite/composite.h"
#include "probs_tiles.h"

namespace uniattn::composite {
namespace {

constexpr int64_t kBlockRows = 256;

// Query rows [row, row + rows) of a sequence and the keys [key, key + keys) that one of them sees. A kept block of P is
// tiles[:, tile : tile + rows * keys].
struct Block {
  int64_t row, rows, key, keys, tile;
};

// The leader's pattern, block by block, in the accumulation dtype.
class Pattern {
 public:
  Pattern(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& cu_seqlens,
          const AttentionOptions& options)
      : q_(q),
        k_(k),
        lse_(lse),
        tiles_(tiles),
        options_(options),
        scale_(resolved_scale(options, q.size(2))),
        type_(accumulation_type(q.scalar_type())),
        kept_(holds_probs(tiles, q, options)) {
    const std::vector<int64_t> bounds = check_sequences(cu_seqlens, q.size(0));
    const int64_t block_rows = kept_ ? kTileRows : kBlockRows;
    int64_t tile = 0;
    for (size_t s = 0; s + 1 < bounds.size(); ++s) {
      for (int64_t row = bounds[s]; row < bounds[s + 1]; row += block_rows) {
        const int64_t row_end = std::min(row + block_rows, bounds[s + 1]);
        const int64_t key = options.window > 0 ? std::max(bounds[s], row - options.window + 1) : bounds[s];
        const int64_t key_end = options.causal ? row_end : bounds[s + 1];
        blocks_.push_back({row, row_end - row, key, key_end - key, tile});
        tile += (row_end - row) * (key_end - key);
      }
    }
  }

  const std::vector<Block>& blocks() const { return blocks_; }

  // x[begin : begin + count] as [heads, count, head_dim].
  Tensor slice(const Tensor& x, int64_t begin, int64_t count) const {
    return x.narrow(0, begin, count).transpose(0, 1).to(type_);
  }
  // The same for a tensor with q's heads, as [kv_heads, heads / kv_heads * count, head_dim].
  Tensor grouped(const Tensor& x, int64_t begin, int64_t count) const { return group(slice(x, begin, count)); }
  // [heads, count, n] -> [kv_heads, heads / kv_heads * count, n] and back.
  Tensor group(const Tensor& x) const { return x.reshape({kv_heads(), heads() / kv_heads() * x.size(1), x.size(2)}); }
  Tensor ungroup(const Tensor& x) const { return x.reshape({heads(), x.numel() / heads() / x.size(2), x.size(2)}); }

  // Scores after scale and soft-cap, before the mask: [heads, rows, keys].
  Tensor scores(const Block& b) const {
    Tensor s = ungroup(at::bmm(grouped(q_, b.row, b.rows), slice(k_, b.key, b.keys).transpose(1, 2))).mul_(scale_);
    if (options_.softcap > 0) s.div_(options_.softcap).tanh_().mul_(options_.softcap);
    return s;
  }
  // P as it is kept: [heads, rows, keys].
  Tensor kept(const Block& b) const {
    return tiles_.narrow(1, b.tile, b.rows * b.keys).view({heads(), b.rows, b.keys});
  }
  // P as it is kept, or exp(scores - lse), 0 where masked.
  Tensor probs(const Block& b) const { return kept_ ? kept(b).to(type_) : probs(b, scores(b)); }
  Tensor probs(const Block& b, const Tensor& scores) const {
    if (kept_) return kept(b).to(type_);
    Tensor p = (scores - lse_.narrow(1, b.row, b.rows).unsqueeze(2)).exp_();
    return mask(p, b, 0);
  }
  // Fills the invisible pairs of x [heads, rows, keys] in place.
  Tensor mask(Tensor& x, const Block& b, double value) const {
    const auto index = at::TensorOptions().dtype(at::kLong).device(x.device());
    const Tensor distance =
        at::arange(b.row, b.row + b.rows, index).unsqueeze(1) - at::arange(b.key, b.key + b.keys, index);
    if (options_.causal) x.masked_fill_(distance.lt(0), value);
    if (options_.window > 0) x.masked_fill_(distance.ge(options_.window), value);
    return x;
  }
  // P V, written into the block's rows of out.
  void write_output(const Tensor& p, const Tensor& v, const Block& b, Tensor& out) const {
    const Tensor o = ungroup(at::bmm(group(p), slice(v, b.key, b.keys)));
    out.narrow(0, b.row, b.rows).copy_(o.transpose(0, 1));
  }

  int64_t tokens() const { return q_.size(0); }
  int64_t heads() const { return q_.size(1); }
  int64_t kv_heads() const { return k_.size(1); }
  double scale() const { return scale_; }
  double softcap() const { return options_.softcap; }
  bool keeps() const { return kept_; }
  Tensor key_accumulator() const { return at::zeros({kv_heads(), tokens(), q_.size(2)}, q_.options().dtype(type_)); }

 private:
  const Tensor &q_, &k_, &lse_, &tiles_;
  AttentionOptions options_;
  double scale_;
  at::ScalarType type_;
  bool kept_;
  std::vector<Block> blocks_;
};

Tensor mapped(const Tensor& p, const OptionalTensor& head_map) {
  return head_map ? p.index_select(0, *head_map) : p;
}

// [kv_heads, tokens, head_dim] -> [tokens, kv_heads, head_dim] in the dtype of k.
Tensor as_key(const Tensor& accumulated, const Tensor& k) {
  return accumulated.transpose(0, 1).to(k.scalar_type()).contiguous();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& cu_seqlens, bool causal, int64_t window,
                                                     double softcap, std::optional<double> scale, bool keep_probs) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attention(q, k, v, cu_seqlens, options);
  const Tensor tiles = empty_tiles(q, options, keep_probs);
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulation_type(q.scalar_type())));
  const Pattern pattern(q, k, lse, tiles, cu_seqlens, options);
  for (const Block& b : pattern.blocks()) {
    Tensor s = pattern.scores(b);
    pattern.mask(s, b, -std::numeric_limits<double>::infinity());
    const Tensor block_lse = s.logsumexp(2);
    lse.narrow(1, b.row, b.rows).copy_(block_lse);
    const Tensor p = s.sub_(block_lse.unsqueeze(2)).exp_();
    if (pattern.keeps()) pattern.kept(b).copy_(p);
    pattern.write_output(p, v, b, out);
  }
  return {out, lse, tiles};
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                      double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend(q, k, lse, tiles, v, cu_seqlens, head_map, options);
  check_head_map_values(head_map, q.size(1));
  const Pattern pattern(q, k, lse, tiles, cu_seqlens, options);
  Tensor out = at::empty(q.sizes(), q.options());
  for (const Block& b : pattern.blocks()) {
    pattern.write_output(mapped(pattern.probs(b), head_map), v, b, out);
  }
  return out;
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             bool causal, int64_t window, double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, options);
  check_head_map_values(head_map, q.size(1));
  const Pattern pattern(q, k, lse, tiles, cu_seqlens, options);
  Tensor dv = pattern.key_accumulator();
  for (const Block& b : pattern.blocks()) {
    const Tensor p = pattern.group(mapped(pattern.probs(b), head_map));
    dv.narrow(1, b.key, b.keys).baddbmm_(p.transpose(1, 2), pattern.grouped(grad_out, b.row, b.rows));
  }
  return as_key(dv, k);
}

namespace {

// dP - delta, [heads, rows, keys], summed over the layers on the leader's heads.
Tensor grad_probs(const Pattern& pattern, const Block& b, at::TensorList grad_out, at::TensorList v,
                  at::TensorList delta, const c10::List<OptionalTensor>& head_map) {
  Tensor sum;
  for (size_t i = 0; i < grad_out.size(); ++i) {
    Tensor dp = pattern.ungroup(
        at::bmm(pattern.grouped(grad_out[i], b.row, b.rows), pattern.slice(v[i], b.key, b.keys).transpose(1, 2)));
    dp.sub_(delta[i].narrow(1, b.row, b.rows).unsqueeze(2));
    const OptionalTensor map = head_map.get(i);
    if (map) dp = at::zeros_like(dp).index_add_(0, *map, dp);
    sum = sum.defined() ? sum.add_(dp) : dp;
  }
  return sum;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse,
                                                       const Tensor& tiles, const Tensor& cu_seqlens,
                                                       at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                                                       const c10::List<OptionalTensor>& head_map, bool causal,
                                                       int64_t window, double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_superblock(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, options);
  for (size_t i = 0; i < head_map.size(); ++i) check_head_map_values(head_map.get(i), q.size(1));
  const Pattern pattern(q, k, lse, tiles, cu_seqlens, options);
  Tensor dq = at::empty(q.sizes(), q.options());
  Tensor dk = pattern.key_accumulator(), dv = pattern.key_accumulator();
  for (const Block& b : pattern.blocks()) {
    // The soft-cap's derivative is a function of the scores.
    const Tensor s = pattern.keeps() && softcap == 0 ? Tensor() : pattern.scores(b);
    const Tensor p = pattern.probs(b, s);
    dv.narrow(1, b.key, b.keys).baddbmm_(pattern.group(p).transpose(1, 2), pattern.grouped(grad_out[0], b.row, b.rows));
    Tensor ds = grad_probs(pattern, b, grad_out, v, delta, head_map).mul_(p).mul_(pattern.scale());
    if (softcap > 0) ds.mul_(1 - (s / softcap).square_());
    ds = pattern.group(ds);
    dq.narrow(0, b.row, b.rows).copy_(pattern.ungroup(at::bmm(ds, pattern.slice(k, b.key, b.keys))).transpose(0, 1));
    dk.narrow(1, b.key, b.keys).baddbmm_(ds.transpose(1, 2), pattern.grouped(q, b.row, b.rows));
  }
  return {dq, as_key(dk, k), as_key(dv, k)};
}

Tensor attention_delta(const Tensor& grad_out, const Tensor& out) {
  TORCH_CHECK_VALUE(out.dim() == 3, "out must be [tokens, heads, head_dim], got ", out.sizes());
  check_like(grad_out, "grad_out", out, "out");
  const auto type = accumulation_type(out.scalar_type());
  return (grad_out.to(type) * out.to(type)).sum(2).t().contiguous();
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attend_forward", attend_forward);
  m.impl("attend_backward_value", attend_backward_value);
  m.impl("superblock_backward", superblock_backward);
  m.impl("attention_delta", attention_delta);
}

}  // namespace uniattn::composite
