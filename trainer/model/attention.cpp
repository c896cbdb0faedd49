#include "model/attention.h"

#include <ATen/core/grad_mode.h>

namespace uniattn {

int64_t count_followers(const SharingPlan& plan, int64_t leader, Mode mode) {
  int64_t count = 0;
  for (const int64_t follower : plan.followers_of(leader)) count += plan.layers[follower].mode == mode;
  return count;
}

namespace {

// A follower's values have the model's number of heads, and the operators want as many keys.
at::Tensor with_model_kv_heads(const ModelConfig& config, const at::Tensor& x) {
  return x.size(1) == config.num_kv_heads ? x : x.repeat_interleave(config.num_kv_heads / x.size(1), 1);
}

at::Tensor lead(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Projections& own,
                const at::Tensor& cu_seqlens, Leaders& leaders) {
  const int64_t probs = count_followers(plan, index, Mode::share_probs);
  const at::Tensor k = probs > 0 ? with_model_kv_heads(config, own.k) : own.k;
  const at::Tensor v = probs > 0 ? with_model_kv_heads(config, own.v) : own.v;
  // Without gradients P is rebuilt: calibration holds the leaders of many chunks at once.
  const std::optional<bool> keep_probs = at::GradMode::is_enabled() ? std::nullopt : std::optional(false);
  AttentionResult result = attention(own.q, k, v, cu_seqlens, probs, attention_options(config, index), keep_probs);
  if (!plan.leads(index)) return result.out;
  LeaderState& state = leaders[index] = {.probs = std::move(result.probs), .k = {}, .v = {}};
  if (count_followers(plan, index, Mode::share_kv) > 0) state.k = own.k, state.v = own.v;
  return result.out;
}

at::Tensor follow(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Projections& own,
                  const at::Tensor& cu_seqlens, LeaderState& state) {
  if (plan.layers[index].mode == Mode::share_kv) {
    const AttentionOptions options = attention_options(config, plan.mask_layer(index));
    return attention(own.q, state.k, state.v, cu_seqlens, 0, options).out;
  }
  const Probs probs = std::move(state.probs.back());
  state.probs.pop_back();
  return attend(probs, own.v, head_map_tensor(plan.layers[index].head_map, own.v.device()));
}

}  // namespace

Projections project(const ModelConfig& config, const Layer& layer, const at::Tensor& x, const Sequences& sequences) {
  Projections own;
  if (layer.q.defined()) own.q = rotated_heads(config, x, layer.q, sequences);
  if (layer.k.defined()) own.k = rotated_heads(config, x, layer.k, sequences);
  if (layer.v.defined()) own.v = value_heads(config, x, layer.v);
  return own;
}

at::Tensor attention_heads(const ModelConfig& config, const SharingPlan& plan, int64_t index,
                           const Projections& projected, const at::Tensor& cu_seqlens, Leaders& leaders) {
  const LayerPlan& layer = plan.layers[index];
  if (layer.mode == Mode::full) return lead(config, plan, index, projected, cu_seqlens, leaders);
  if (layer.leader < 0) return {};
  at::Tensor heads = follow(config, plan, index, projected, cu_seqlens, leaders.at(layer.leader));
  if (plan.last_follower_of(layer.leader) == index) leaders.erase(layer.leader);
  return heads;
}

at::Tensor attention_heads(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                           const at::Tensor& x, const Sequences& sequences, Leaders& leaders) {
  return attention_heads(config, plan, index, project(config, layer, x, sequences), sequences.cu_seqlens, leaders);
}

at::Tensor add_attention(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                         const at::Tensor& stream, const Sequences& sequences, Leaders& leaders) {
  const at::Tensor x = norm(config, stream, layer.input_norm);
  const at::Tensor heads = attention_heads(config, plan, index, layer, x, sequences, leaders);
  return stream + attention_output(config, layer, heads, x);
}

at::Tensor advance(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                   const at::Tensor& stream, const Sequences& sequences, Leaders& leaders) {
  return add_mlp(config, layer, add_attention(config, plan, index, layer, stream, sequences, leaders));
}

}  // namespace uniattn
