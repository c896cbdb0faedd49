// The CPU kernel of a superblock's gradient with respect to the leader's q, k and v.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

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

// Work items that a backward pass is cut into at least, where the shape allows; a constant, so that results do not
// depend on the number of threads.
constexpr int64_t kItems = 16, kMaxSplits = 4;

// The layers' dO and V, packed, and for every leader head the query heads that read its pattern.
class Readers {
 public:
  Readers(const Tensor& q, const Tensor& k, Packer& packer, at::TensorList grad_out, at::TensorList v,
          const c10::List<OptionalTensor>& head_map)
      : readers_(q.size(1)) {
    for (size_t layer = 0; layer < grad_out.size(); ++layer) {
      const Heads heads(q, k, head_map.get(layer));
      // Packed data does not move when these vectors grow.
      grads_.push_back(packer.copy(grad_out[layer], Packing::kRows));
      values_.push_back(packer.copy(v[layer], Packing::kColumns));
      for (int64_t head = 0; head < heads.count; ++head) {
        readers_[heads.leader(head)].push_back({grads_.back().head(head), values_.back().head(heads.group_of(head))});
      }
    }
  }
  const std::vector<Reader>& of(int64_t head) const { return readers_[head]; }

 private:
  std::vector<Packed> grads_, values_;
  std::vector<std::vector<Reader>> readers_;
};

// delta of all layers summed on the leader's heads: [heads, tokens].
Tensor leader_delta(at::TensorList delta, const c10::List<OptionalTensor>& head_map) {
  Tensor total = at::zeros_like(delta[0], at::MemoryFormat::Contiguous);
  for (size_t i = 0; i < delta.size(); ++i) {
    const OptionalTensor map = head_map.get(i);
    map ? total.index_add_(0, *map, delta[i]) : total.add_(delta[i]);
  }
  return total;
}

// A float32 packed copy times factor -> a tensor like q.
Tensor unpack(const Tensor& packed, const Tiling& tiling, double factor, const Tensor& q) {
  Tensor out = at::empty(q.sizes(), q.options());
  at::parallel_for(0, static_cast<int64_t>(tiling.tiles.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      for (int64_t head = 0; head < q.size(1); ++head) {
        kernels().unpack(packed.const_data_ptr<float>() + head * packed.stride(0), tiling.tiles[tile], q.size(2),
                         static_cast<float>(factor), type_of(q), head_data(out, head), out.stride(0));
      }
    }
  });
  return out;
}

std::vector<Tensor> widen(at::TensorList list) {
  std::vector<Tensor> wide;
  for (const Tensor& x : list) wide.push_back(cpu::widen(x));
  return wide;
}

std::tuple<Tensor, Tensor, Tensor> superblock_backward(const Tensor& q, const Tensor& k, const Tensor& lse,
                                                       const Tensor& tiles, const Tensor& cu_seqlens,
                                                       at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                                                       const c10::List<OptionalTensor>& head_map, bool causal,
                                                       int64_t window, double softcap, std::optional<double> scale) {
  const AttentionOptions options{causal, window, softcap, scale};
  check_superblock(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, options);
  if (takes_widened(q)) {
    const auto [dq, dk, dv] =
        superblock_backward(cpu::widen(q), cpu::widen(k), lse, tiles, cu_seqlens, widen(grad_out), widen(v), delta,
                            head_map, causal, window, softcap, resolved_scale(options, q.size(2)));
    return {narrow_to(dq, q), narrow_to(dk, k), narrow_to(dv, k)};
  }
  if (!takes(q)) {
    return composite::superblock_backward(q, k, lse, tiles, cu_seqlens, grad_out, v, delta, head_map, causal, window,
                                          softcap, scale);
  }
  const bool need_scores = !holds_probs(tiles, q, options) || softcap > 0;
  const Tiling tiling(check_sequences(cu_seqlens, q.size(0)), options);
  const Heads heads(q, k, std::nullopt);
  Packer packer(tiling);
  const Readers readers(q, k, packer, grad_out, v, head_map);
  const Packed q_rows = packer.copy_if(need_scores, q, Packing::kRows);
  const Packed k_columns = packer.copy_if(need_scores, k, Packing::kColumns);
  const Packed q_paired = packer.copy(q, Packing::kPaired), k_paired = packer.copy(k, Packing::kPaired);
  const Packed grad_paired = packer.copy(grad_out[0], Packing::kPaired);
  packer.run();
  const Tensor row_lse = lse.contiguous(), total_delta = leader_delta(delta, head_map);
  const std::vector<TileRange> sequences = tiling.sequences();

  // One item is a KV head of a sequence, whose dQ would be shared by items over its tiles of keys. Where there are too
  // few items, the tiles are dealt out to `splits` of them, each with a dQ of its own.
  const int64_t units = std::max<int64_t>(1, heads.groups * static_cast<int64_t>(sequences.size()));
  const int64_t splits = std::clamp<int64_t>(kItems / units, 1, kMaxSplits);
  Tensor dq = at::zeros({splits, heads.count, tiling.size, q.size(2)}, q.options().dtype(at::kFloat));
  Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(k.sizes(), k.options());
  const AttentionShape shape = attention_shape(tiling, q, options);
  const int64_t step = backward_tiles(shape.head_dim);
  const auto work = [&](int64_t item, float* scratch) {
    const int64_t group = item % heads.groups, split = item / heads.groups % splits;
    const TileRange sequence = sequences[item / heads.groups / splits];
    std::vector<LeaderHead> leader_heads;
    for (int64_t head = group * heads.per_group; head < (group + 1) * heads.per_group; ++head) {
      const int64_t row = head * row_lse.stride(0);
      leader_heads.push_back({q_rows.head(head), q_paired.head(head), grad_paired.head(head),
                              row_lse.const_data_ptr<float>() + row, total_delta.const_data_ptr<float>() + row,
                              kept_probs(tiles, head), readers.of(head).data(),
                              static_cast<int64_t>(readers.of(head).size()),
                              dq.data_ptr<float>() + split * dq.stride(0) + head * dq.stride(1)});
    }
    for (int64_t first = sequence.first + split * step; first < sequence.last; first += splits * step) {
      const int64_t last = std::min(first + step, sequence.last);
      std::vector<TileRange> queries;
      for (int64_t tile = first; tile < last; ++tile) queries.push_back(tiling.queries_of(tile));
      kernels().superblock_backward({shape,
                                     {first, last},
                                     queries.data(),
                                     k_paired.head(group),
                                     k_columns.head(group),
                                     leader_heads.data(),
                                     heads.per_group,
                                     head_data(dk, group),
                                     head_data(dv, group),
                                     dk.stride(0),
                                     scratch});
    }
  };
  for_each_item(heads.groups * splits * static_cast<int64_t>(sequences.size()),
                superblock_backward_scratch(shape.head_dim), work);
  return {unpack(splits == 1 ? dq[0] : dq.sum(0), tiling, shape.scale, q), dk, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("superblock_backward", superblock_backward);
}

}  // namespace uniattn::cpu
