// How query heads, KV groups and a follower's head map hang together, and what the attention kernels take.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/tiling.h"
#include "cpu/types.h"
#include "probs_tiles.h"

namespace uniattn::cpu {

static_assert(kTile == kTileRows);

enum class Role { kLeader, kFollower };

struct Heads {
  int64_t count, groups, per_group;
  std::vector<int64_t> leaders;  // empty: the identity

  // Reads and checks the values of head_map.
  Heads(const at::Tensor& q, const at::Tensor& k, const std::optional<at::Tensor>& head_map)
      : count(q.size(1)), groups(k.size(1)), per_group(count / groups) {
    if (!head_map) return;
    check_head_map_values(head_map, count);
    const at::Tensor values = head_map->contiguous();
    leaders.assign(values.const_data_ptr<int64_t>(), values.const_data_ptr<int64_t>() + count);
  }

  int64_t leader(int64_t head) const { return leaders.empty() ? head : leaders[head]; }
  int64_t group_of(int64_t head) const { return head / per_group; }
};

// Whether the kernels take attention over queries like q; shapes are checked later.
inline bool takes(const at::Tensor& q) {
  return is_supported(q) && q.dim() == 3 && q.size(2) % kColumnMultiple == 0 && q.size(2) > 0 &&
         q.size(2) <= kMaxHeadDim;
}

// Whether they take it once the heads are widened with zeros, which change no product.
inline bool takes_widened(const at::Tensor& q) {
  return is_supported(q) && q.dim() == 3 && q.size(2) % kColumnMultiple != 0 && q.size(2) < kMaxHeadDim;
}

inline at::Tensor widen(const at::Tensor& x) {
  return at::constant_pad_nd(x, {0, kColumnMultiple - x.size(2) % kColumnMultiple});
}

inline at::Tensor narrow_to(const at::Tensor& x, const at::Tensor& like) {
  return x.narrow(2, 0, like.size(2)).contiguous();
}

// P of one head where holds_probs(tiles), else null.
inline void* kept_probs(const at::Tensor& tiles, int64_t head) {
  return tiles.size(1) == 0 ? nullptr
                            : static_cast<char*>(tiles.data_ptr()) + head * tiles.stride(0) * tiles.element_size();
}

inline AttentionShape attention_shape(const Tiling& tiling, const at::Tensor& q, const AttentionOptions& options) {
  return {tiling.tiles.data(),
          q.size(2),
          options.causal,
          options.window,
          static_cast<float>(options.softcap),
          static_cast<float>(resolved_scale(options, q.size(2))),
          type_of(q),
          Packer::type(q)};
}

}  // namespace uniattn::cpu
