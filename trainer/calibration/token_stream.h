// Calibration documents as they stream through a model one layer at a time, and the loss at its end.
#pragma once
#include <map>
#include <vector>

#include "data/shards.h"
#include "model/attention.h"
#include "model/decoder.h"
#include "parallel/process_group.h"

namespace uniattn {

// Of so many calibration documents the last ones are held out: a share of them, at least one, never all.
int64_t held_out_documents(int64_t documents, double share);

// Some whole documents that run through a layer at once.
struct TokenChunk {
  Batch batch;
  Sequences sequences;
  bool held_out = false;
};

// This rank's documents. Throws UsageError when there are fewer than two documents.
std::vector<TokenChunk> load_token_chunks(const ModelConfig& config, const TokenShards& data, double held_out,
                                          at::Device device, const ProcessGroup& group);

// The residual stream before the first layer, [T, D] float32 for each chunk.
std::vector<at::Tensor> embed_chunks(const ModelConfig& config, const TensorSource& tensors,
                                     const std::vector<TokenChunk>& chunks);

using Leaders = std::map<int64_t, LeaderState>;

// The residual stream after layer `index` of the plan, from that before it. [T, D]
at::Tensor advance(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                   const at::Tensor& stream, const Sequences& sequences, Leaders& leaders);

// Final norm, head and cross-entropy.
class LossHead {
 public:
  LossHead(const ModelConfig& config, const TensorSource& tensors, at::Device device);
  // Nats per supervised token of all ranks' held-out chunks; `streams` are those after the last layer, one per held-out
  // chunk in order.
  double mean_loss(const std::vector<TokenChunk>& chunks, const std::vector<at::Tensor>& streams,
                   ProcessGroup& group) const;

 private:
  const ModelConfig& config_;
  at::Tensor norm_, head_;
};

// Held-out loss of the model under `plan`, with `weights` in place of the base's where they have the name. One layer's
// weights are in memory.
double held_out_loss(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                     const NamedTensors& weights, const std::vector<TokenChunk>& chunks, ProcessGroup& group);

}  // namespace uniattn
