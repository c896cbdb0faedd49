// The segments out of which a plan is composed.
#pragma once
#include <string>
#include <vector>

#include "model/config.h"
#include "plan/plan.h"

namespace uniattn {

// Layers [begin, end) under one mode: a superblock, whose first layer of each attention mask leads those that follow,
// or a single layer that needs no leader (linear, skip).
struct PlanCandidate {
  int64_t begin = 0, end = 0;
  Mode mode = Mode::full;
  std::vector<LayerPlan> layers{};  // one for each of [begin, end)

  int64_t followers() const;
  std::string name() const;  // such as "share_probs 3-5": mode, first and last layer
};

// All of them, by first layer, mode and length. A leader and its followers are at most `max_group` layers; of two
// candidates with the same first layer and mode the longer begins with the shorter.
std::vector<PlanCandidate> plan_candidates(const ModelConfig& config, const std::vector<Mode>& modes, int64_t max_group,
                                           Compensation compensation);

// The base model with these candidates in it.
SharingPlan compose_plan(int64_t num_layers, const std::vector<PlanCandidate>& candidates,
                         const std::vector<size_t>& chosen);

}  // namespace uniattn
