// A layer whose activations are not kept between forward and backward.
#pragma once
#include "model/attention.h"

namespace uniattn {

// The residual stream [T, D] in a layer.
struct LayerStreams {
  at::Tensor after_attention, after_mlp;
};

// add_attention() and add_mlp(), with the same bits. Until the backward pass has been here there remain the layer's
// input and, where it leads, the q, k, log-sum-exp (and v for share_kv) that its followers read. `config`, `plan` and
// `layer` must outlive the backward pass.
LayerStreams advance_checkpointed(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                                  const at::Tensor& stream, const Sequences& sequences, Leaders& leaders);

}  // namespace uniattn
