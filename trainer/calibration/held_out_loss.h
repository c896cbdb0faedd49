// The loss on the held-out calibration documents, one layer of the model in memory at a time.
#pragma once
#include <vector>

#include "calibration/streams.h"
#include "model/layer.h"

namespace uniattn {

// Final norm, head and cross-entropy.
class LossHead {
 public:
  LossHead(const ModelConfig& config, const TensorSource& tensors, at::Device device);
  // Nats per supervised token of all ranks' held-out chunks; `streams` [T, D] are those after the last layer, one per
  // held-out chunk in order.
  double mean_loss(const std::vector<Chunk>& chunks, const std::vector<at::Tensor>& streams, ProcessGroup& group) const;

 private:
  const ModelConfig& config_;
  at::Tensor norm_, head_;
};

// Of the model under `plan`, with `weights` in place of the base's where they have the name. The chunks' base streams
// are the embeddings.
double held_out_loss(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                     const NamedTensors& weights, const std::vector<Chunk>& chunks, ProcessGroup& group);

}  // namespace uniattn
