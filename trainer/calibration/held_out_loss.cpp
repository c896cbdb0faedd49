#include "calibration/held_out_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "model/decoder.h"
#include "parallel/device.h"
#include "support/error.h"

namespace uniattn {

LossHead::LossHead(const ModelConfig& config, const TensorSource& tensors, at::Device device)
    : config_(config),
      norm_(read_tensor(tensors, "model.norm.weight", {config.hidden_size}, at::kFloat, device)),
      head_(read_tensor(tensors, config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                        {config.vocab_size, config.hidden_size}, at::kFloat, device)) {}

double LossHead::mean_loss(const std::vector<Chunk>& chunks, const std::vector<at::Tensor>& streams,
                           ProcessGroup& group) const {
  double sum = 0;
  int64_t tokens = 0;
  auto stream = streams.begin();
  for (const Chunk& chunk : chunks) {
    if (!chunk.held_out) continue;
    const at::Tensor hidden = norm(config_, *stream++, norm_);
    const at::Tensor losses = linear_cross_entropy(hidden, head_, chunk.batch.labels, config_.final_softcap);
    sum += losses.sum(at::kDouble).item<double>();
    tokens += chunk.batch.supervised;
  }
  tokens = group.sum(tokens);
  if (tokens == 0) fail("the held-out calibration documents have no supervised token");
  return group.sum(sum) / static_cast<double>(tokens);
}

double held_out_loss(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                     const NamedTensors& weights, const std::vector<Chunk>& chunks, ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  const at::Device device = compute_device(group.local_rank());
  const std::map<std::string, at::Tensor> replaced(weights.begin(), weights.end());
  std::vector<const Chunk*> held_out;
  std::vector<at::Tensor> streams;
  for (const Chunk& chunk : chunks)
    if (chunk.held_out) held_out.push_back(&chunk), streams.push_back(chunk.base);
  std::vector<Leaders> leaders(streams.size());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer layer = read_layer(tensors, config, plan.layers[i], i, at::kFloat, device);
    for (const LayerSlot& slot : layer_slots(config, plan.layers[i], i))
      if (const auto found = replaced.find(slot.name); found != replaced.end()) layer.*slot.member = found->second;
    for (size_t c = 0; c < streams.size(); ++c)
      streams[c] = advance(config, plan, i, layer, streams[c], held_out[c]->sequences, leaders[c]);
  }
  return LossHead(config, tensors, device).mean_loss(chunks, streams, group);
}

}  // namespace uniattn
