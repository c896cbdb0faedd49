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
at::Tensor neutral_compensation(const TensorSpec& spec) {
  if (!spec.name.ends_with(".down.weight")) return at::zeros(spec.shape, at::kFloat);
  const std::string layer = spec.name.substr(std::string("model.layers.").size());
  at::Generator generator = at::detail::createCPUGenerator(std::stoull(layer));
  return at::randn(spec.shape, generator).div_(std::sqrt(static_cast<double>(spec.shape[1])));
}

void check_shape(const TensorSpec& spec, const TensorInfo& found) {
  if (found.shape != spec.shape && !spec.is_to_pool(found.shape))
    fail("tensor `{}` has shape [{}], the model's config needs [{}]", spec.name, fmt::join(found.shape, ", "),
         fmt::join(spec.shape, ", "));
}

at::Tensor pooled(const TensorSpec& spec, const at::Tensor& tensor) {
  return tensor.to(at::kDouble).view(spec.pooled_view).mean(1).flatten(0, 1);
}

// A sum is finite only if all terms are (short of overflow, which sums in float64 exclude here): one cheap pass. By
// parts, as the sum converts what it is given to float64 first.
void check_finite(const std::string& name, const at::Tensor& tensor) {
  constexpr int64_t kPart = 1 << 20;
  for (const at::Tensor& part : tensor.flatten().split(kPart)) {
    if (!at::isfinite(part.sum(at::kDouble)).item<bool>())
      fail("tensor `{}` holds values that are not finite (NaN or infinity)", name);
  }
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
  check_shape(spec, info);
  at::Tensor tensor = source.tensor(spec.name);
  if (spec.is_to_pool(info.shape)) tensor = pooled(spec, tensor);
  tensor = tensor.to(device, dtype, /*non_blocking=*/false, /*copy=*/true);
  check_finite(spec.name, tensor);
  return tensor;
}

at::Tensor read_slice(const TensorSource& source, const TensorSpec& spec, int64_t begin, int64_t end) {
  if (is_compensation(spec.name) && !source.contains(spec.name))
    return neutral_compensation(spec).flatten().slice(0, begin, end);
  const TensorInfo info = source.info(spec.name);
  check_shape(spec, info);
  const at::Tensor slice = spec.is_to_pool(info.shape)
                               ? pooled(spec, source.tensor(spec.name)).flatten().slice(0, begin, end)
                               : source.slice(spec.name, begin, end);
  check_finite(spec.name, slice);
  return slice.to(at::kFloat);
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
                             ? neutral_compensation(slot).to(device, dtype)
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
  for (int64_t i = 0; i < config.num_layers; ++i) {
    model.layers.push_back(read_layer(source, config, plan.layers[i], i, dtype, device));
    source.release();  // the model would be in memory twice: as it is read, and as it is in the files
  }
  model.final_norm = read_tensor(source, kFinalNorm, {config.hidden_size}, dtype, device);
  model.head = config.tied_embeddings ? model.embedding : read_tensor(source, kHead, vocab_shape, dtype, device);
  return model;
}

at::Tensor Decoder::hidden(const Batch& batch, std::vector<at::Tensor>* after_attention) const {
  const Sequences sequences = make_sequences(config, batch.positions, batch.cu_seqlens);
  const bool checkpoint = checkpoint_activations && at::GradMode::is_enabled();
  if (observer) observer->enter(0);
  at::Tensor stream = embed(config, embedding, batch.tokens);
  if (observer) observer->leave(0, stream, {});
  Leaders leaders;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    if (observer) observer->enter(1 + i);
    LayerStreams streams;
    if (checkpoint) {
      streams = advance_checkpointed(config, plan, i, layers[i], stream, sequences, leaders);
    } else {
      streams.after_attention = add_attention(config, plan, i, layers[i], stream, sequences, leaders);
      streams.after_mlp = add_mlp(config, layers[i], streams.after_attention);
    }
    if (after_attention) after_attention->push_back(streams.after_attention);
    stream = streams.after_mlp;
    if (observer) observer->leave(1 + i, stream, after_attention ? streams.after_attention : at::Tensor());
  }
  if (observer) observer->enter(1 + config.num_layers);
  return norm(config, stream, final_norm);
}

at::Tensor Decoder::token_losses(const Batch& batch) const {
  return linear_cross_entropy(hidden(batch), head, batch.labels, config.final_softcap);
}

std::vector<std::vector<ParameterSlot>> Decoder::parts() {
  const std::vector<int64_t> vocab_shape{config.vocab_size, config.hidden_size};
  std::vector<std::vector<ParameterSlot>> parts{{{{kEmbedding, vocab_shape}, &embedding}}};
  layers.resize(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    auto& part = parts.emplace_back();
    for (const LayerSlot& slot : layer_slots(config, plan.layers[i], i))
      part.push_back({slot, &(layers[i].*slot.member)});
  }
  parts.push_back({{{kFinalNorm, {config.hidden_size}}, &final_norm}});
  if (!config.tied_embeddings) parts.back().push_back({{kHead, vocab_shape}, &head});
  return parts;
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
