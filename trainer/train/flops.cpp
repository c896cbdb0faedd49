#include "train/flops.h"

#include <algorithm>

#include "model/decoder.h"
#include "train/trained_set.h"

namespace uniattn {
namespace {

// Keys that the tokens of a document see, summed.
double visible_pairs(int64_t length, int64_t window) {
  const int64_t seen = window > 0 ? std::min(window, length) : length;
  return static_cast<double>(seen) * static_cast<double>(seen + 1) / 2 +
         static_cast<double>(length - seen) * static_cast<double>(seen);
}

}  // namespace

FlopCounter::FlopCounter(const ModelConfig& config, const SharingPlan& plan, const TrainedSet& trained,
                         int64_t max_length)
    : max_length_(max_length) {
  // Two per weight and token forward, two for the gradient of its input, two for its own if it has one.
  const auto count_weight = [&](const std::string& name, double elements) {
    weights_per_token_ += (is_trained(trained, name) ? 6 : 4) * elements;
  };
  const std::string embedding = "model.embed_tokens.weight";
  for (const TensorSpec& spec : tensor_specs(config, plan))
    if (spec.shape.size() == 2 && (spec.name != embedding || config.tied_embeddings))  // a look-up is no product
      count_weight(spec.name, static_cast<double>(spec.shape[0] * spec.shape[1]));
  // Q K^T and P V: two each forward and four each backward, per head dimension.
  const double product = 6.0 * static_cast<double>(config.num_heads * config.head_dim);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Mode mode = plan.layers[i].mode;
    if (mode == Mode::linear || mode == Mode::skip) continue;
    patterns_.push_back({(mode == Mode::share_probs ? 1 : 2) * product, config.windows[plan.mask_layer(i)]});
  }
}

StepFlops FlopCounter::count(const std::vector<int64_t>& lengths) const {
  StepFlops flops;
  for (const int64_t length : lengths) {
    const double tokens = static_cast<double>(length);
    flops.dense += tokens * weights_per_token_;
    flops.causal += tokens * weights_per_token_;
    for (const Pattern& pattern : patterns_) {
      flops.dense += pattern.per_pair * tokens * static_cast<double>(max_length_);
      flops.causal += pattern.per_pair * visible_pairs(length, pattern.window);
    }
  }
  return flops;
}

}  // namespace uniattn
