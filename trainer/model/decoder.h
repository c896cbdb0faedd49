// The decoder: embedding, layers under a sharing plan, head. One class for all families.
#pragma once
#include "model/batch.h"
#include "model/layer.h"
#include "storage/safetensors.h"

namespace uniattn {

// Every tensor of a model under a plan, in checkpoint order.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config, const SharingPlan& plan);

// Reads `name` as `dtype` on `device` into memory of its own. Throws Error for a wrong shape or values that are not
// finite.
at::Tensor read_tensor(const TensorSource& source, const std::string& name, const std::vector<int64_t>& shape,
                       at::ScalarType dtype, at::Device device = at::kCPU);
// The same, after pooling where the source has the base's key/value heads and the plan fewer.
at::Tensor read_tensor(const TensorSource& source, const TensorSpec& spec, at::ScalarType dtype,
                       at::Device device = at::kCPU);

Layer read_layer(const TensorSource& source, const ModelConfig& config, const LayerPlan& plan, int64_t index,
                 at::ScalarType dtype, at::Device device = at::kCPU);

// Embedding of tokens [T] -> [T, D].
at::Tensor embed(const ModelConfig& config, const at::Tensor& embedding, const at::Tensor& tokens);

class Decoder {
 public:
  ModelConfig config;
  SharingPlan plan;
  at::Tensor embedding;   // [vocab, D]
  at::Tensor final_norm;  // [D]
  at::Tensor head;        // [vocab, D]; the embedding itself when tied
  std::vector<Layer> layers;
  bool checkpoint_activations = false;  // layers are computed again in the backward pass: less memory, the same bits

  // Compensations that the source lacks start at zero (low rank: up zero, down random with a fixed seed).
  static Decoder read(const TensorSource& source, const ModelConfig& config, const SharingPlan& plan,
                      at::ScalarType dtype, at::Device device = at::kCPU);

  // Final normed hidden states [T, D] of packed sequences. `after_attention`, if given, receives the residual stream
  // after attention of every layer, [T, D] each.
  at::Tensor hidden(const Batch& batch, std::vector<at::Tensor>* after_attention = nullptr) const;
  // Cross-entropy of every position's label [T] float32, 0 where there is none. Logits of the whole batch never exist.
  at::Tensor token_losses(const Batch& batch) const;

  // Tensors by their checkpoint names; a tied head is listed once.
  std::vector<std::pair<std::string, at::Tensor*>> parameters();
};

}  // namespace uniattn
