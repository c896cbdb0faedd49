// One decoder layer: its tensors, their Hugging Face names, and its computation on packed sequences.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "model/config.h"
#include "uniattn/ops.h"

namespace uniattn {

// Undefined tensors are those that the layer's mode drops. Projections are [out, in].
struct Layer {
  at::Tensor input_norm, q, k, v, o;
  at::Tensor compensation;                        // [D, D]
  at::Tensor compensation_down, compensation_up;  // [r, D], [D, r]
  at::Tensor post_attention_norm;                 // post-norm families only
  at::Tensor mlp_norm, gate, up, down;
  at::Tensor post_mlp_norm;  // post-norm families only
};

// A tensor's name in a Hugging Face checkpoint and the shape it must have. The key and value projections of a layer
// with fewer key/value heads than its model may still be the base's: their rows, seen as `pooled_view` [kv_heads, heads
// to pool, head_dim, D], are averaged over the heads to pool. Empty for all others.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<int64_t> pooled_view{};

  // Whether `found` is the shape of a base's tensor that is to be pooled.
  bool is_to_pool(const std::vector<int64_t>& found) const;
};

// A layer's tensor and its place in Layer.
struct LayerSlot : TensorSpec {
  at::Tensor Layer::*member;
};

// Whether a checkpoint name is that of a compensation (full, or a factor of a low-rank one).
bool is_compensation(const std::string& name);

// Key/value heads that a layer projects, if it does.
int64_t kv_heads(const ModelConfig& config, const LayerPlan& plan);

std::vector<LayerSlot> layer_slots(const ModelConfig& config, const LayerPlan& plan, int64_t index);

// What all layers of one forward pass over packed sequences share. T = tokens.
struct Sequences {
  at::Tensor cu_seqlens;  // [sequences + 1] int32
  at::Tensor cos, sin;    // [T, head_dim / 2] float32
};

// Inverse wave lengths [head_dim / 2] of the rotary embedding in float32, computed in the order transformers does:
// positions past 8,192 feel the last bit.
at::Tensor inverse_frequencies(const ModelConfig& config);

// positions [T] int64.
Sequences make_sequences(const ModelConfig& config, const at::Tensor& positions, const at::Tensor& cu_seqlens);
// The same with the inverse frequencies at hand, on the device of the positions.
Sequences make_sequences(const at::Tensor& frequencies, const at::Tensor& positions, const at::Tensor& cu_seqlens);

AttentionOptions attention_options(const ModelConfig& config, int64_t layer);

// A follower's head map as int64 [heads] on `device`; empty for the identity, as the map is then.
std::optional<at::Tensor> head_map_tensor(const std::vector<int64_t>& head_map, at::Device device);

// rms_norm with the family's convention for the weight.
at::Tensor norm(const ModelConfig& config, const at::Tensor& x, const at::Tensor& weight);

// Queries and keys of x [T, D] after the rotary embedding, [T, heads, head_dim] and [T, kv_heads, head_dim].
at::Tensor rotated_heads(const ModelConfig& config, const at::Tensor& x, const at::Tensor& projection,
                         const Sequences& sequences);
// Values, [T, kv_heads, head_dim].
at::Tensor value_heads(const ModelConfig& config, const at::Tensor& x, const at::Tensor& projection);

// W_o of the heads' outputs [T, heads, head_dim] plus the layer's compensation of its normed input x [T, D]. Without
// heads (undefined: linear, skip) the compensation alone, or zero.
at::Tensor attention_branch(const Layer& layer, const at::Tensor& heads, const at::Tensor& x);

// What the layer adds to the stream: the branch, in post-norm families through that norm.
at::Tensor attention_output(const ModelConfig& config, const Layer& layer, const at::Tensor& heads,
                            const at::Tensor& x);
at::Tensor post_attention(const ModelConfig& config, const Layer& layer, const at::Tensor& branch);

// The residual stream after the MLP, from that after attention. [T, D]
at::Tensor add_mlp(const ModelConfig& config, const Layer& layer, const at::Tensor& residual);

}  // namespace uniattn
