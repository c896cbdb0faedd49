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

// Elements [begin, end) of a flattened parameter, float32 on the CPU: of the source's tensor, pooled where it is to be,
// or of its neutral value where it is a compensation that the source lacks. Where nothing is pooled, only these are
// read. Throws Error as read_tensor does.
at::Tensor read_slice(const TensorSource& source, const TensorSpec& spec, int64_t begin, int64_t end);

Layer read_layer(const TensorSource& source, const ModelConfig& config, const LayerPlan& plan, int64_t index,
                 at::ScalarType dtype, at::Device device = at::kCPU);

// Embedding of tokens [T] -> [T, D].
at::Tensor embed(const ModelConfig& config, const at::Tensor& embedding, const at::Tensor& tokens);

// Told of a forward pass part by part: 0 is the embedding, 1 + i layer i, 1 + num_layers the final norm with the head,
// which the pass enters but does not leave.
class PartObserver {
 public:
  virtual ~PartObserver() = default;
  virtual void enter(int64_t part) = 0;  // before the part reads its parameters
  // `stream` [T, D] is what the part gives; backward may also come in by `inner`, a tensor inside it (undefined: none).
  virtual void leave(int64_t part, const at::Tensor& stream, const at::Tensor& inner) = 0;
};

// A parameter of a decoder.
struct ParameterSlot : TensorSpec {
  at::Tensor* parameter;
};

class Decoder {
 public:
  ModelConfig config;
  SharingPlan plan;
  at::Tensor embedding;   // [vocab, D]
  at::Tensor final_norm;  // [D]
  at::Tensor head;        // [vocab, D]; the embedding itself when tied
  std::vector<Layer> layers;
  bool checkpoint_activations = false;  // layers are computed again in the backward pass: less memory, the same bits
  PartObserver* observer = nullptr;     // optional

  // Compensations that the source lacks start at zero (low rank: up zero, down random with a fixed seed).
  static Decoder read(const TensorSource& source, const ModelConfig& config, const SharingPlan& plan,
                      at::ScalarType dtype, at::Device device = at::kCPU);

  // Final normed hidden states [T, D] of packed sequences. `after_attention`, if given, receives the residual stream
  // after attention of every layer, [T, D] each.
  at::Tensor hidden(const Batch& batch, std::vector<at::Tensor>* after_attention = nullptr) const;
  // Cross-entropy of every position's label [T] float32, 0 where there is none. Logits of the whole batch never exist.
  at::Tensor token_losses(const Batch& batch) const;

  // All parameters by the part that they belong to, as PartObserver counts them; a tied head is listed once, as the
  // embedding.
  std::vector<std::vector<ParameterSlot>> parts();
  // Tensors by their checkpoint names; a tied head is listed once.
  std::vector<std::pair<std::string, at::Tensor*>> parameters();
};

}  // namespace uniattn
