#include "calibration/plan_candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace uniattn {
namespace {

void add_superblocks(const ModelConfig& config, Mode mode, int64_t begin, int64_t max_group, Compensation compensation,
                     std::vector<PlanCandidate>& candidates) {
  PlanCandidate block{.begin = begin, .end = begin, .mode = mode};
  std::map<int64_t, int64_t> leaders, sizes;  // by attention window
  for (; block.end < config.num_layers; ++block.end) {
    const int64_t window = config.windows[block.end];
    const bool leads = leaders.try_emplace(window, block.end).second;
    if (++sizes[window] > max_group) return;
    block.layers.push_back(leads ? LayerPlan{}
                                 : LayerPlan{.mode = mode, .leader = leaders[window], .compensation = compensation});
    if (leads || sizes[config.windows[begin]] < 2) continue;  // it would end in a leader, or begin with no leader
    candidates.push_back(block);
    ++candidates.back().end;
  }
}

}  // namespace

int64_t PlanCandidate::followers() const {
  return std::ranges::count_if(layers, [](const LayerPlan& layer) { return layer.mode != Mode::full; });
}

std::string PlanCandidate::name() const {
  return fmt::format("{} {}-{}", to_string(mode), begin, end - 1);
}

std::vector<PlanCandidate> plan_candidates(const ModelConfig& config, const std::vector<Mode>& modes, int64_t max_group,
                                           Compensation compensation) {
  std::vector<PlanCandidate> candidates;
  for (int64_t begin = 0; begin < config.num_layers; ++begin) {
    for (const Mode mode : modes) {
      if (has_leader(mode)) {
        add_superblocks(config, mode, begin, max_group, compensation, candidates);
      } else {
        const LayerPlan alone{.mode = mode, .compensation = mode == Mode::skip ? Compensation{} : compensation};
        candidates.push_back({.begin = begin, .end = begin + 1, .mode = mode, .layers = {alone}});
      }
    }
  }
  return candidates;
}

SharingPlan compose_plan(int64_t num_layers, const std::vector<PlanCandidate>& candidates,
                         const std::vector<size_t>& chosen) {
  SharingPlan plan = SharingPlan::all_full(num_layers);
  for (const size_t c : chosen) std::ranges::copy(candidates[c].layers, plan.layers.begin() + candidates[c].begin);
  return plan;
}

}  // namespace uniattn
