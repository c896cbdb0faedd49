// From an operator's tensors to what the kernels are given. ATen alone, on any device, so that tests use it as well.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "cuda/params.h"

namespace uniattn::cuda {

// x itself, or a copy that kernels can read 16 bytes at a time.
inline at::Tensor aligned(const at::Tensor& x) {
  const at::Tensor dense = x.contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone();
}

// Of a tensor in one of the kernels' dtypes.
inline Type type_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return Type::kFloat32;
  return x.scalar_type() == at::kHalf ? Type::kFloat16 : Type::kBFloat16;
}

// A Pattern and the tensors that its pointers lead to.
struct PatternTensors {
  at::Tensor q, k, lse, cu_seqlens, cu_seqlens_keys;
  Pattern pattern;

  // Arguments as checked by check_query_key; lse is undefined for a leader's forward pass.
  PatternTensors(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& lse_, const at::Tensor& cu_seqlens_,
                 const AttentionOptions& options)
      : PatternTensors(q_, k_, lse_, cu_seqlens_, cu_seqlens_, options) {}

  // As checked by check_prefill: the queries are the last tokens of their sequences.
  PatternTensors(const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& lse_, const at::Tensor& cu_seqlens_,
                 const at::Tensor& cu_seqlens_keys_, const AttentionOptions& options)
      : q(aligned(q_)),
        k(aligned(k_)),
        lse(lse_.defined() ? lse_.contiguous() : lse_),
        cu_seqlens(cu_seqlens_.contiguous()),
        cu_seqlens_keys(cu_seqlens_keys_.contiguous()) {
    const int64_t tokens = q.size(0), keys = k.size(0);
    TORCH_CHECK_VALUE(tokens == 0 || cu_seqlens.size(0) > 1, "cu_seqlens holds no sequence, but q has ", tokens,
                      " tokens");
    pattern = {.type = type_of(q),
               .head_dim = static_cast<int>(q.size(2)),
               .tokens = static_cast<int>(tokens),
               .keys = static_cast<int>(keys),
               .heads = static_cast<int>(q.size(1)),
               .kv_heads = static_cast<int>(k.size(1)),
               .sequences = static_cast<int>(cu_seqlens.size(0)) - 1,
               .cu_seqlens = cu_seqlens.const_data_ptr<int32_t>(),
               .cu_seqlens_keys = cu_seqlens_keys.const_data_ptr<int32_t>(),
               .causal = options.causal,
               .window = static_cast<int>(std::min(options.window, keys)),
               .softcap = static_cast<float>(options.softcap),
               .scale = static_cast<float>(resolved_scale(options, q.size(2))),
               .q = q.const_data_ptr(),
               .k = k.const_data_ptr(),
               .lse = lse.defined() ? lse.const_data_ptr<float>() : nullptr};
  }
};

// Readers, from one head map per layer: int64 [heads], or nothing for the identity as for the first. Waits for no
// device.
struct ReaderTensors {
  at::Tensor begin, order;

  ReaderTensors(const c10::List<std::optional<at::Tensor>>& head_map, const at::Tensor& q) {
    const int64_t heads = q.size(1);
    const auto options = q.options().dtype(at::kLong);
    std::vector<at::Tensor> maps;
    for (size_t i = 0; i < head_map.size(); ++i) {
      const std::optional<at::Tensor> map = head_map.get(i);
      maps.push_back(map ? map->clamp(0, heads - 1) : at::arange(heads, options));
    }
    const auto [leaders, sorted] = at::cat(maps).sort(/*stable=*/std::optional(true), /*dim=*/0);
    order = sorted;
    begin = at::searchsorted(leaders, at::arange(heads + 1, options));
  }
  Readers pointers() const { return {begin.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()}; }
};

}  // namespace uniattn::cuda
