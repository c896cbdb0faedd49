#include "model/footprint.h"

#include <functional>
#include <numeric>

#include "model/decoder.h"

namespace uniattn {
namespace {

int64_t elements(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

int64_t layer_parameters(const ModelConfig& config, const LayerPlan& plan, int64_t index) {
  int64_t total = 0;
  for (const LayerSlot& slot : layer_slots(config, plan, index)) total += elements(slot.shape);
  return total;
}

int64_t total_parameters(const ModelConfig& config, const SharingPlan& plan) {
  int64_t total = 0;
  for (const TensorSpec& spec : tensor_specs(config, plan)) total += elements(spec.shape);
  return total;
}

int64_t layer_kv_bytes(const ModelConfig& config, const LayerPlan& plan, int64_t bytes_per_element) {
  const int64_t tensors = plan.mode == Mode::full ? 2 : plan.mode == Mode::share_probs ? 1 : 0;
  return tensors * kv_heads(config, plan) * config.head_dim * bytes_per_element;
}

int64_t total_kv_bytes(const ModelConfig& config, const SharingPlan& plan, int64_t bytes_per_element) {
  int64_t total = 0;
  for (const LayerPlan& layer : plan.layers) total += layer_kv_bytes(config, layer, bytes_per_element);
  return total;
}

}  // namespace uniattn
