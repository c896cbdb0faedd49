#include "calibration/plan_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "model/footprint.h"
#include "model/layer.h"

namespace uniattn {
namespace {

// Multiplications and additions of a layer's attention, projections and compensation included, for one decoded token
// that `context` tokens precede. A share_probs follower is handed its row of P and reads no keys.
int64_t attention_flops(const ModelConfig& config, const LayerPlan& plan, int64_t index, int64_t context) {
  int64_t weights = 0;
  for (const LayerSlot& slot : layer_slots(config, plan, index))
    if (slot.name.find(".self_attn.") != std::string::npos)
      weights += std::accumulate(slot.shape.begin(), slot.shape.end(), int64_t{1}, std::multiplies<>());
  const int64_t products = plan.mode == Mode::full || plan.mode == Mode::share_kv ? 2
                           : plan.mode == Mode::share_probs                       ? 1
                                                                                  : 0;
  const int64_t window = config.windows[index];
  const int64_t keys = window > 0 ? std::min(window, context + 1) : context + 1;
  return 2 * (weights + products * keys * config.num_heads * config.head_dim);
}

}  // namespace

PlanBudget::PlanBudget(const ModelConfig& config, const SearchBudget& budget, int64_t context)
    : config_(config),
      unit_(budget.followers > 0         ? Unit::followers
            : budget.kv_bytes > 0        ? Unit::kv_bytes
            : budget.attention_flops > 0 ? Unit::attention_flops
                                         : Unit::parameters),
      context_(context) {
  if (unit_ == Unit::followers) {
    range_ = {budget.followers, budget.followers};
    return;
  }
  const SharingPlan full = SharingPlan::all_full(config.num_layers);
  if (unit_ == Unit::parameters)
    base_ = total_parameters(config, full);
  else
    for (int64_t i = 0; i < config.num_layers; ++i) base_ += layer_cost(full.layers[i], i);
  const double share = unit_ == Unit::kv_bytes          ? budget.kv_bytes
                       : unit_ == Unit::attention_flops ? budget.attention_flops
                                                        : budget.parameters;
  // A share given with a few digits shall not miss a plan by rounding.
  range_.least = static_cast<int64_t>(std::ceil((1 - share - 1e-9) * static_cast<double>(base_)));
}

int64_t PlanBudget::layer_cost(const LayerPlan& plan, int64_t index) const {
  switch (unit_) {
    case Unit::followers:
      return plan.mode == Mode::full ? 1 : 0;
    case Unit::kv_bytes:
      return layer_kv_bytes(config_, plan, 1);
    case Unit::attention_flops:
      return attention_flops(config_, plan, index, context_);
    case Unit::parameters:
      return layer_parameters(config_, plan, index);
  }
  return 0;
}

int64_t PlanBudget::saving(const PlanCandidate& candidate) const {
  int64_t total = 0;
  for (int64_t i = candidate.begin; i < candidate.end; ++i)
    total += layer_cost(LayerPlan{}, i) - layer_cost(candidate.layers[i - candidate.begin], i);
  return total;
}

std::string PlanBudget::describe(int64_t saving) const {
  static constexpr const char* kNames[] = {"followers", "kv_bytes", "attention_flops", "parameters"};
  const char* name = kNames[static_cast<size_t>(unit_)];
  if (unit_ == Unit::followers) return fmt::format("{}: {}", name, saving);
  return fmt::format("{}: {:.4f}", name, 1 - static_cast<double>(saving) / static_cast<double>(base_));
}

}  // namespace uniattn
