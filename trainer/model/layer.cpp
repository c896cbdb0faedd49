#include "model/layer.h"

#include <cmath>
#include <numbers>

namespace uniattn {

at::Tensor inverse_frequencies(const ModelConfig& config) {
  const at::Tensor exponents = at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat) / config.head_dim;
  at::Tensor frequencies = 1.0 / at::pow(config.rope_theta, exponents);
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind == RopeScaling::Kind::linear) return frequencies / rope.factor;
  if (rope.kind == RopeScaling::Kind::none) return frequencies;
  // Llama 3.1: long waves are slowed by `factor`, short ones kept, those between interpolated.
  const double original = static_cast<double>(rope.original_max_positions);
  const at::Tensor wave_lengths = 2 * std::numbers::pi / frequencies;
  const at::Tensor smooth =
      (original / wave_lengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor slowed = frequencies / rope.factor;
  const at::Tensor between = (1 - smooth) * slowed + smooth * frequencies;
  const at::Tensor is_long = wave_lengths > original / rope.low_freq_factor;
  const at::Tensor is_short = wave_lengths < original / rope.high_freq_factor;
  return at::where(is_long, slowed, at::where(is_short, frequencies, between));
}

namespace {

at::Tensor project_heads(const ModelConfig& config, const at::Tensor& x, const at::Tensor& projection) {
  return uniattn::linear(x, projection).view({x.size(0), -1, config.head_dim});
}

at::Tensor low_rank_compensation(const Layer& layer, const at::Tensor& x) {
  return uniattn::linear(uniattn::linear(x, layer.compensation_down), layer.compensation_up);
}

at::Tensor compensation_alone(const Layer& layer, const at::Tensor& x) {
  if (layer.compensation.defined()) return uniattn::linear(x, layer.compensation);
  return layer.compensation_down.defined() ? low_rank_compensation(layer, x) : at::zeros_like(x);
}

at::Tensor compensated_heads(const Layer& layer, const at::Tensor& heads, const at::Tensor& x) {
  const at::Tensor o = heads.flatten(1);
  if (layer.compensation.defined()) return compensated_output(o, layer.o, x, layer.compensation);
  const at::Tensor out = uniattn::linear(o, layer.o);
  return layer.compensation_down.defined() ? out + low_rank_compensation(layer, x) : out;
}

}  // namespace

bool TensorSpec::is_to_pool(const std::vector<int64_t>& found) const {
  return !pooled_view.empty() &&
         found == std::vector<int64_t>{pooled_view[0] * pooled_view[1] * pooled_view[2], pooled_view[3]};
}

int64_t kv_heads(const ModelConfig& config, const LayerPlan& plan) {
  return plan.num_kv_heads > 0 ? plan.num_kv_heads : config.num_kv_heads;
}

bool is_compensation(const std::string& name) {
  return name.find(".self_attn.compensation.") != std::string::npos;
}

std::vector<LayerSlot> layer_slots(const ModelConfig& config, const LayerPlan& plan, int64_t index) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const int64_t d = config.hidden_size, ff = config.intermediate_size;
  const int64_t q = config.num_heads * config.head_dim, kv = kv_heads(config, plan) * config.head_dim;
  std::vector<LayerSlot> slots;
  auto slot = [&](const char* name, std::vector<int64_t> shape, at::Tensor Layer::*member) {
    slots.push_back({{prefix + name, std::move(shape)}, member});
  };
  auto pooled_slot = [&](const char* name, at::Tensor Layer::*member) {
    slot(name, {kv, d}, member);
    if (plan.num_kv_heads > 0)
      slots.back().pooled_view = {plan.num_kv_heads, config.num_kv_heads / plan.num_kv_heads, config.head_dim, d};
  };
  const bool full = plan.mode == Mode::full, has_leader = plan.leader >= 0;
  slot("input_layernorm.weight", {d}, &Layer::input_norm);
  if (full || plan.mode == Mode::share_kv) slot("self_attn.q_proj.weight", {q, d}, &Layer::q);
  if (full) pooled_slot("self_attn.k_proj.weight", &Layer::k);
  if (full || plan.mode == Mode::share_probs) pooled_slot("self_attn.v_proj.weight", &Layer::v);
  if (full || has_leader) slot("self_attn.o_proj.weight", {d, q}, &Layer::o);
  if (plan.compensation.kind == Compensation::Kind::full)
    slot("self_attn.compensation.weight", {d, d}, &Layer::compensation);
  if (plan.compensation.kind == Compensation::Kind::low_rank) {
    slot("self_attn.compensation.down.weight", {plan.compensation.rank, d}, &Layer::compensation_down);
    slot("self_attn.compensation.up.weight", {d, plan.compensation.rank}, &Layer::compensation_up);
  }
  if (config.post_norms) {
    slot("post_attention_layernorm.weight", {d}, &Layer::post_attention_norm);
    slot("pre_feedforward_layernorm.weight", {d}, &Layer::mlp_norm);
    slot("post_feedforward_layernorm.weight", {d}, &Layer::post_mlp_norm);
  } else {
    slot("post_attention_layernorm.weight", {d}, &Layer::mlp_norm);
  }
  slot("mlp.gate_proj.weight", {ff, d}, &Layer::gate);
  slot("mlp.up_proj.weight", {ff, d}, &Layer::up);
  slot("mlp.down_proj.weight", {d, ff}, &Layer::down);
  return slots;
}

Sequences make_sequences(const ModelConfig& config, const at::Tensor& positions, const at::Tensor& cu_seqlens) {
  return make_sequences(inverse_frequencies(config).to(positions.device()), positions, cu_seqlens);
}

Sequences make_sequences(const at::Tensor& frequencies, const at::Tensor& positions, const at::Tensor& cu_seqlens) {
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(1) * frequencies;
  return {cu_seqlens, angles.cos(), angles.sin()};
}

AttentionOptions attention_options(const ModelConfig& config, int64_t layer) {
  return {.window = config.windows[layer], .softcap = config.attention_softcap, .scale = config.attention_scale};
}

std::optional<at::Tensor> head_map_tensor(const std::vector<int64_t>& head_map, at::Device device) {
  if (head_map.empty()) return std::nullopt;
  return at::tensor(head_map, at::kLong).to(device);
}

at::Tensor norm(const ModelConfig& config, const at::Tensor& x, const at::Tensor& weight) {
  return rms_norm(x, weight, config.norm_eps, config.unit_offset_norm);
}

at::Tensor rotated_heads(const ModelConfig& config, const at::Tensor& x, const at::Tensor& projection,
                         const Sequences& sequences) {
  return rotary(project_heads(config, x, projection), sequences.cos, sequences.sin);
}

at::Tensor value_heads(const ModelConfig& config, const at::Tensor& x, const at::Tensor& projection) {
  return project_heads(config, x, projection);
}

at::Tensor attention_branch(const Layer& layer, const at::Tensor& heads, const at::Tensor& x) {
  return heads.defined() ? compensated_heads(layer, heads, x) : compensation_alone(layer, x);
}

at::Tensor post_attention(const ModelConfig& config, const Layer& layer, const at::Tensor& branch) {
  return config.post_norms ? norm(config, branch, layer.post_attention_norm) : branch;
}

at::Tensor attention_output(const ModelConfig& config, const Layer& layer, const at::Tensor& heads,
                            const at::Tensor& x) {
  return post_attention(config, layer, attention_branch(layer, heads, x));
}

at::Tensor add_mlp(const ModelConfig& config, const Layer& layer, const at::Tensor& residual) {
  const at::Tensor x = norm(config, residual, layer.mlp_norm);
  const char* activation = config.activation == Activation::silu ? "silu" : "gelu_tanh";
  const at::Tensor hidden = gated_activation(uniattn::linear(x, layer.gate), uniattn::linear(x, layer.up), activation);
  const at::Tensor out = uniattn::linear(hidden, layer.down);
  return residual + (config.post_norms ? norm(config, out, layer.post_mlp_norm) : out);
}

}  // namespace uniattn
