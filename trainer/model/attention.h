// The attention of one layer under a sharing plan, in every mode (docs/method.md). T = tokens.
#pragma once
#include <map>
#include <vector>

#include "model/layer.h"

namespace uniattn {

// What a layer projects from its normed input. Undefined where its mode has no such weight.
struct Projections {
  at::Tensor q;     // [T, heads, head_dim] after the rotary embedding
  at::Tensor k, v;  // [T, kv_heads, head_dim], k after the rotary embedding
};

Projections project(const ModelConfig& config, const Layer& layer, const at::Tensor& x, const Sequences& sequences);

// What a full layer leaves for its followers in one forward pass.
struct LeaderState {
  std::vector<Probs> probs;  // one per share_probs follower that is still to come, last first
  at::Tensor k, v;           // [T, kv_heads, head_dim], where a share_kv follower needs them
};

using Leaders = std::map<int64_t, LeaderState>;

// Followers of `leader` in this mode.
int64_t count_followers(const SharingPlan& plan, int64_t leader, Mode mode);

// The heads' outputs [T, heads, head_dim] of layer `index` on its normed input x [T, D]; undefined for linear and skip.
// A leader puts its state into `leaders`; a follower takes from it, the last one all that is left.
at::Tensor attention_heads(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                           const at::Tensor& x, const Sequences& sequences, Leaders& leaders);

// The same on what the layer has projected already.
at::Tensor attention_heads(const ModelConfig& config, const SharingPlan& plan, int64_t index,
                           const Projections& projected, const at::Tensor& cu_seqlens, Leaders& leaders);

// The residual stream [T, D] behind the attention of layer `index`, from that before it.
at::Tensor add_attention(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                         const at::Tensor& stream, const Sequences& sequences, Leaders& leaders);

// The same behind the whole layer.
at::Tensor advance(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                   const at::Tensor& stream, const Sequences& sequences, Leaders& leaders);

}  // namespace uniattn
