// CPU kernels of the superblock's forward pass and of a follower's dV, for float32 and bfloat16; what they do not take
// goes to the composite.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "composite/composite.h"
#include "cpu/heads.h"
#include "cpu/kernels.h"
#include "cpu/tiling.h"
#include "cpu/types.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The leader writes lse, and tiles where they hold P; a follower reads them.
Tensor forward(Role role, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, const Tensor& tiles,
               const Tensor& cu_seqlens, const OptionalTensor& head_map, const AttentionOptions& options) {
  const Tiling tiling(check_sequences(cu_seqlens, q.size(0)), options);
  const Heads heads(q, k, head_map);
  const bool kept = holds_probs(tiles, q, options), read = kept && role == Role::kFollower;
  Packer packer(tiling);
  const Packed q_rows = packer.copy_if(!read, q, Packing::kRows);
  const Packed k_columns = packer.copy_if(!read, k, Packing::kColumns);
  const Packed v_paired = packer.copy(v, Packing::kPaired);
  packer.run();
  const auto kernel = role == Role::kLeader ? kernels().leader_forward : kernels().follower_forward;
  const AttentionShape shape = attention_shape(tiling, q, options);
  Tensor out = at::empty(q.sizes(), q.options());
  const int64_t count = static_cast<int64_t>(tiling.tiles.size());
  const int64_t floats = forward_scratch(shape.head_dim, kept && !read ? tiling.most_key_tiles : 0);
  for_each_item(heads.count * count, floats, [&](int64_t item, float* scratch) {
    // Head by head, whose keys and values then stay in the cache. Late tiles see most keys: they come first, so that no
    // thread is left with one at the end.
    const int64_t tile = count - 1 - item % count, head = item / count, leader = heads.leader(head);
    kernel({shape, tile, tiling.keys_of(tile), q_rows.head(leader), k_columns.head(heads.group_of(leader)),
            v_paired.head(heads.group_of(head)), lse.data_ptr<float>() + leader * lse.stride(0),
            kept_probs(tiles, leader), head_data(out, head), out.stride(0), scratch});
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& cu_seqlens, bool causal, int64_t window,
                                                     double softcap, std::optional<double> scale, bool keep_probs) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attention(q, k, v, cu_seqlens, options);
  if (takes_widened(q)) {
    const auto [out, lse, tiles] = attention_forward(widen(q), widen(k), widen(v), cu_seqlens, causal, window, softcap,
                                                     resolved_scale(options, q.size(2)), keep_probs);
    return {narrow_to(out, q), lse, tiles};
  }
  if (!takes(q)) return composite::attention_forward(q, k, v, cu_seqlens, causal, window, softcap, scale, keep_probs);
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  const Tensor tiles = empty_tiles(q, options, keep_probs);
  return {forward(Role::kLeader, q, k, v, lse, tiles, cu_seqlens, std::nullopt, options), lse, tiles};
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                      const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                      double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend(q, k, lse, tiles, v, cu_seqlens, head_map, options);
  if (takes_widened(q)) {
    return narrow_to(attend_forward(widen(q), widen(k), lse, tiles, widen(v), cu_seqlens, head_map, causal, window,
                                    softcap, resolved_scale(options, q.size(2))),
                     q);
  }
  if (!takes(q))
    return composite::attend_forward(q, k, lse, tiles, v, cu_seqlens, head_map, causal, window, softcap, scale);
  return forward(Role::kFollower, q, k, v, lse.contiguous(), tiles, cu_seqlens, head_map, options);
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                             const Tensor& grad_out, const Tensor& cu_seqlens, const OptionalTensor& head_map,
                             bool causal, int64_t window, double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, options);
  if (takes_widened(q)) {
    return narrow_to(attend_backward_value(widen(q), widen(k), lse, tiles, widen(grad_out), cu_seqlens, head_map,
                                           causal, window, softcap, resolved_scale(options, q.size(2))),
                     k);
  }
  if (!takes(q)) {
    return composite::attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, causal, window, softcap,
                                            scale);
  }
  const Tiling tiling(check_sequences(cu_seqlens, q.size(0)), options);
  const Heads heads(q, k, head_map);
  const bool kept = holds_probs(tiles, q, options);
  Packer packer(tiling);
  const Packed q_rows = packer.copy_if(!kept, q, Packing::kRows);
  const Packed k_columns = packer.copy_if(!kept, k, Packing::kColumns);
  const Packed grad_paired = packer.copy(grad_out, Packing::kPaired);
  packer.run();
  const Tensor row_lse = lse.contiguous();
  std::vector<ValueHead> value_heads;
  for (int64_t head = 0; head < heads.count; ++head) {
    const int64_t leader = heads.leader(head);
    value_heads.push_back({q_rows.head(leader), k_columns.head(heads.group_of(leader)),
                           row_lse.const_data_ptr<float>() + leader * row_lse.stride(0), kept_probs(tiles, leader),
                           grad_paired.head(head)});
  }
  Tensor dv = at::empty(k.sizes(), k.options());
  const int64_t count = static_cast<int64_t>(tiling.tiles.size());
  const AttentionShape shape = attention_shape(tiling, q, options);
  for_each_item(heads.groups * count, value_backward_scratch(shape.head_dim), [&](int64_t item, float* scratch) {
    const int64_t tile = item % count, group = item / count;
    kernels().value_backward({shape, tile, tiling.queries_of(tile), &value_heads[group * heads.per_group],
                              heads.per_group, head_data(dv, group), dv.stride(0), scratch});
  });
  return dv;
}

Tensor attention_delta(const Tensor& grad_out, const Tensor& out) {
  if (!takes(out)) return composite::attention_delta(grad_out, out);
  check_like(grad_out, "grad_out", out, "out");
  const Tensor a = grad_out.contiguous(), b = out.contiguous();
  const int64_t tokens = out.size(0), heads = out.size(1);
  Tensor delta = at::empty({heads, tokens}, out.options().dtype(at::kFloat));
  at::parallel_for(0, tokens, 64, [&](int64_t begin, int64_t end) {
    kernels().row_dot(a.const_data_ptr(), b.const_data_ptr(), type_of(a), tokens, heads, out.size(2), begin, end,
                      delta.data_ptr<float>());
  });
  return delta;
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attend_forward", attend_forward);
  m.impl("attend_backward_value", attend_backward_value);
  m.impl("attention_delta", attention_delta);
}

}  // namespace uniattn::cpu
