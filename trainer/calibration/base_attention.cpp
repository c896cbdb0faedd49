#include "calibration/base_attention.h"

#include <ATen/ATen.h>

namespace uniattn {
namespace {

at::Tensor norm_weight(const ModelConfig& config, const Layer& layer) {
  const at::Tensor& weight = layer.post_attention_norm;
  return (config.unit_offset_norm ? weight + 1 : weight).unsqueeze(1);
}

}  // namespace

BaseAttention base_attention(const ModelConfig& config, const SharingPlan& base_plan, int64_t index, const Layer& layer,
                             const at::Tensor& stream, const Sequences& sequences) {
  const at::Tensor x = norm(config, stream, layer.input_norm);
  Leaders none;
  const at::Tensor branch =
      attention_branch(layer, attention_heads(config, base_plan, index, layer, x, sequences, none), x);
  BaseAttention result{stream + post_attention(config, layer, branch), {}};
  if (config.post_norms) result.rms = branch.square().mean(1, true).sqrt().clamp_min(1e-12);
  return result;
}

Layer kept_weights(const ModelConfig& config, const LayerPlan& plan, int64_t index, const Layer& base) {
  Layer layer;
  for (const LayerSlot& slot : layer_slots(config, plan, index)) layer.*slot.member = base.*slot.member;
  return layer;
}

at::Tensor with_norm_weight(const ModelConfig& config, const Layer& layer, const at::Tensor& w) {
  return config.post_norms && w.defined() ? w * norm_weight(config, layer) : w;
}

at::Tensor without_norm_weight(const ModelConfig& config, const Layer& layer, const at::Tensor& w) {
  if (!config.post_norms || !w.defined()) return w;
  const at::Tensor weight = norm_weight(config, layer);
  return at::where(weight == 0, 0, w / weight);
}

}  // namespace uniattn
