// What calibration and the scoring of segments both need of a layer: the base's attention, the weights that a mode
// keeps, and how a fit sees a norm behind attention.
#pragma once
#include "model/attention.h"

namespace uniattn {

struct BaseAttention {
  at::Tensor stream;  // [T, D]: the base's residual stream after the layer's attention
  at::Tensor rms;     // [T, 1], post-norm families: root mean square of the branch before its norm
};

// `layer` has all of the base's weights. `stream` [T, D] is that before it.
BaseAttention base_attention(const ModelConfig& config, const SharingPlan& base_plan, int64_t index, const Layer& layer,
                             const at::Tensor& stream, const Sequences& sequences);

// The base's weights that layer `index` keeps under `plan`, without compensation.
Layer kept_weights(const ModelConfig& config, const LayerPlan& plan, int64_t index, const Layer& base);

// A post-norm scales each row by 1 / rms, for which the base's is taken, and each column by its weight. A fit is for
// W_o and W_c [D, *] with that weight inside: here in, and out again. Undefined stays undefined.
at::Tensor with_norm_weight(const ModelConfig& config, const Layer& layer, const at::Tensor& w);
at::Tensor without_norm_weight(const ModelConfig& config, const Layer& layer, const at::Tensor& w);

}  // namespace uniattn
