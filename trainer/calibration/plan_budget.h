// What a plan saves, in the unit of the budget that was given.
#pragma once
#include "calibration/plan_candidates.h"
#include "config/config.h"
#include "plan/plan_dp.h"

namespace uniattn {

class PlanBudget {
 public:
  // context: tokens before the one that attention FLOPs are counted for.
  PlanBudget(const ModelConfig& config, const SearchBudget& budget, int64_t context);

  // Of layers against those of the base; may be negative where a compensation is larger than what it replaces.
  int64_t saving(const PlanCandidate& candidate) const;
  // What a plan must save.
  SavingRange range() const { return range_; }
  // A saving in the words of the configuration: "kv_bytes: 0.75" or "followers: 3".
  std::string describe(int64_t saving) const;

 private:
  int64_t layer_cost(const LayerPlan& plan, int64_t index) const;

  const ModelConfig& config_;
  enum class Unit { followers, kv_bytes, attention_flops, parameters } unit_;
  int64_t context_, base_ = 0;
  SavingRange range_;
};

}  // namespace uniattn
