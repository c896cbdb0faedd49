// What a model under a plan costs, from its config alone.
#pragma once
#include <cstdint>

#include "model/config.h"

namespace uniattn {

// Elements of layer `index`'s tensors.
int64_t layer_parameters(const ModelConfig& config, const LayerPlan& plan, int64_t index);
// Elements of all tensors; a tied head counts once.
int64_t total_parameters(const ModelConfig& config, const SharingPlan& plan);

// Bytes that one cached token takes in a layer: K and V of a full layer's own key/value heads, V alone for share_probs,
// nothing for the other modes.
int64_t layer_kv_bytes(const ModelConfig& config, const LayerPlan& plan, int64_t bytes_per_element);
int64_t total_kv_bytes(const ModelConfig& config, const SharingPlan& plan, int64_t bytes_per_element);

}  // namespace uniattn
