#include "model/decoder.h"

#include <fmt/ranges.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "model/attention.h"
#include "model/checkpointed_layer.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";

// Where no calibration has given one: a compensation that adds nothing yet, and of whose factors both will receive
// gradients.
at::Tensor neutral_compensation(const LayerSlot& slot, int64_t index, at::ScalarType dtype, at::Device device) {
  if (slot.member != &Layer::compensation_down) return at::zeros(slot.shape, at::dtype(dtype).device(device));
  at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(index));
  return at::randn(slot.shape, generator).div_(std::sqrt(static_cast<double>(slot.shape[1]))).to(device, dtype);
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const ModelConfig& config, const SharingPlan& plan) {
  std::vector<TensorSpec> specs{{kEmbedding, {config.vocab_size, config.hidden_size}}};
  for (int64_t i = 0; i < config.num_layers; ++i)
    for (LayerSlot& slot : layer_slots(config, plan.layers[i], i)) specs.push_back(std::move(slot));
  specs.push_back({kFinalNorm, {config.hidden_size}});
  if (!config.tied_embeddings) specs.push_back({kHead, {config.vocab_size, config.hidden_size}});
  return specs;
}

at::Tensor read_tensor(const TensorSource& source, const TensorSpec& spec, at::ScalarType dtype, at::Device device) {
  const TensorInfo info = source.info(spec.name);
  const bool pool = spec.is_to_pool(info.shape);
  if (info.shape != spec.shape && !pool)
    fail("tensor `{}` has shape [{}], the model's config needs [{}]", spec.name, fmt::join(info.shape, ", "),
         fmt::join(spec.shape, ", "));
  at::Tensor tensor = source.tensor(spec.name);
  if (pool) tensor = tensor.to(at::kDouble).view(spec.pooled_view).mean(1).flatten(0, 1);
  tensor = tensor.to(device, dtype, /*non_blocking=*/false, /*copy=*/true);
  // A sum is finite only if all terms are (short of overflow, which sums in float64 exclude here): one cheap pass.
  if (!at::isfinite(tensor.sum(at::kDouble)).item<bool>())
    fail("tensor `{}` holds values that are not finite (NaN or infinity)", spec.name);
  return tensor;
}

at::Tensor read_tensor(const TensorSource& source, const std::string& name, const std::vector<int64_t>& shape,
                       at::ScalarType dtype, at::Device device) {
  return read_tensor(source, TensorSpec{name, shape}, dtype, device);
}

Layer read_layer(const TensorSource& source, const ModelConfig& config, const LayerPlan& plan, int64_t index,
                 at::ScalarType dtype, at::Device device) {
  Layer layer;
  for (const LayerSlot& slot : layer_slots(config, plan, index))
    layer.*slot.member = is_compensation(slot.name) && !source.contains(slot.name)
                             ? neutral_compensation(slot, index, dtype, device)
                             : read_tensor(source, slot, dtype, device);
  return layer;
}

at::Tensor embed(const ModelConfig& config, const at::Tensor& embedding, const at::Tensor& tokens) {
  const at::Tensor hidden = at::embedding(embedding, tokens);
  if (config.embedding_scale == 1) return hidden;
  return hidden *
         at::scalar_tensor(config.embedding_scale, hidden.options());  // rounded to the dtype first, as Gemma does
}

Decoder Decoder::read(const TensorSource& source, const ModelConfig& config, const SharingPlan& plan,
                      at::ScalarType dtype, at::Device device) {
  Decoder model{.config = config, .plan = plan, .embedding = {}, .final_norm = {}, .head = {}, .layers = {}};
  const std::vector<int64_t> vocab_shape{config.vocab_size, config.hidden_size};
  model.embedding = read_tensor(source, kEmbedding, vocab_shape, dtype, device);
  for (int64_t i = 0; i < config.num_layers; ++i)
    model.layers.push_back(read_layer(source, config, plan.layers[i], i, dtype, device));
  model.final_norm = read_tensor(source, kFinalNorm, {config.hidden_size}, dtype, device);
  model.head = config.tied_embeddings ? model.embedding : read_tensor(source, kHead, vocab_shape, dtype, device);
  return model;
}

at::Tensor Decoder::hidden(const Batch& batch, std::vector<at::Tensor>* after_attention) const {
  const Sequences sequences = make_sequences(config, batch.positions, batch.cu_seqlens);
  const bool checkpoint = checkpoint_activations && at::GradMode::is_enabled();
  at::Tensor stream = embed(config, embedding, batch.tokens);
  Leaders leaders;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerStreams streams;
    if (checkpoint) {
      streams = advance_checkpointed(config, plan, i, layers[i], stream, sequences, leaders);
    } else {
      streams.after_attention = add_attention(config, plan, i, layers[i], stream, sequences, leaders);
      streams.after_mlp = add_mlp(config, layers[i], streams.after_attention);
    }
    if (after_attention) after_attention->push_back(streams.after_attention);
    stream = streams.after_mlp;
  }
  return norm(config, stream, final_norm);
}

at::Tensor Decoder::token_losses(const Batch& batch) const {
  return linear_cross_entropy(hidden(batch), head, batch.labels, config.final_softcap);
}

std::vector<std::pair<std::string, at::Tensor*>> Decoder::parameters() {
  std::vector<std::pair<std::string, at::Tensor*>> result{{kEmbedding, &embedding}};
  for (int64_t i = 0; i < config.num_layers; ++i)
    for (const LayerSlot& slot : layer_slots(config, plan.layers[i], i))
      result.emplace_back(slot.name, &(layers[i].*slot.member));
  result.emplace_back(kFinalNorm, &final_norm);
  if (!config.tied_embeddings) result.emplace_back(kHead, &head);
  return result;
}

}  // namespace uniattn
