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

// Calls kernel(args) for every head and tile of queries. `lse` is written or read by the kernel.
Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, const Tensor& cu_seqlens,
               const OptionalTensor& head_map, const AttentionOptions& options, void (*kernel)(const ForwardArgs&)) {
  const Tiling tiling(check_sequences(cu_seqlens, q.size(0)));
  const Heads heads(q, k, head_map);
  const Packed q_rows(q, tiling, Packing::kRows), k_columns(k, tiling, Packing::kColumns);
  const Packed v_paired(v, tiling, Packing::kPaired);
  const AttentionShape shape = attention_shape(tiling, q, options);
  Tensor out = at::empty(q.sizes(), q.options());
  const int64_t tiles = static_cast<int64_t>(tiling.tiles.size());
  for_each_item(heads.count * tiles, forward_scratch(shape.head_dim), [&](int64_t item, float* scratch) {
    // Late tiles see most keys: they come first, so that no thread is left with one at the end.
    const int64_t tile = tiles - 1 - item / heads.count, head = item % heads.count, leader = heads.leader(head);
    kernel({shape, tile, tiling.keys_of(tile, options), q_rows.head(leader), k_columns.head(heads.group_of(leader)),
            v_paired.head(heads.group_of(head)), lse.data_ptr<float>() + leader * lse.stride(0), head_data(out, head),
            out.stride(0), scratch});
  });
  return out;
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& cu_seqlens, bool causal, int64_t window, double softcap,
                                             std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attention(q, k, v, cu_seqlens, options);
  if (takes_widened(q)) {
    const auto [out, lse] = attention_forward(widen(q), widen(k), widen(v), cu_seqlens, causal, window, softcap,
                                              resolved_scale(options, q.size(2)));
    return {narrow_to(out, q), lse};
  }
  if (!takes(q)) return composite::attention_forward(q, k, v, cu_seqlens, causal, window, softcap, scale);
  const Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  return {forward(q, k, v, lse, cu_seqlens, std::nullopt, options, kernels().leader_forward), lse};
}

Tensor attend_forward(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& v, const Tensor& cu_seqlens,
                      const OptionalTensor& head_map, bool causal, int64_t window, double softcap,
                      std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend(q, k, lse, v, cu_seqlens, head_map, options);
  if (takes_widened(q)) {
    return narrow_to(attend_forward(widen(q), widen(k), lse, widen(v), cu_seqlens, head_map, causal, window, softcap,
                                    resolved_scale(options, q.size(2))),
                     q);
  }
  if (!takes(q)) return composite::attend_forward(q, k, lse, v, cu_seqlens, head_map, causal, window, softcap, scale);
  return forward(q, k, v, lse.contiguous(), cu_seqlens, head_map, options, kernels().follower_forward);
}

Tensor attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& grad_out,
                             const Tensor& cu_seqlens, const OptionalTensor& head_map, bool causal, int64_t window,
                             double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_attend_backward_value(q, k, lse, grad_out, cu_seqlens, head_map, options);
  if (takes_widened(q)) {
    return narrow_to(attend_backward_value(widen(q), widen(k), lse, widen(grad_out), cu_seqlens, head_map, causal,
                                           window, softcap, resolved_scale(options, q.size(2))),
                     k);
  }
  if (!takes(q)) {
    return composite::attend_backward_value(q, k, lse, grad_out, cu_seqlens, head_map, causal, window, softcap, scale);
  }
  const Tiling tiling(check_sequences(cu_seqlens, q.size(0)));
  const Heads heads(q, k, head_map);
  const Packed q_rows(q, tiling, Packing::kRows), k_columns(k, tiling, Packing::kColumns);
  const Packed grad_paired(grad_out, tiling, Packing::kPaired);
  const Tensor row_lse = lse.contiguous();
  std::vector<ValueHead> value_heads;
  for (int64_t head = 0; head < heads.count; ++head) {
    const int64_t leader = heads.leader(head);
    value_heads.push_back({q_rows.head(leader), k_columns.head(heads.group_of(leader)),
                           row_lse.const_data_ptr<float>() + leader * row_lse.stride(0), grad_paired.head(head)});
  }
  Tensor dv = at::empty(k.sizes(), k.options());
  const AttentionShape shape = attention_shape(tiling, q, options);
  for_each_item(
      heads.groups * static_cast<int64_t>(tiling.tiles.size()), value_backward_scratch(shape.head_dim),
      [&](int64_t item, float* scratch) {
        const int64_t tile = item / heads.groups, group = item % heads.groups;
        kernels().value_backward({shape, tile, tiling.queries_of(tile, options), &value_heads[group * heads.per_group],
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
