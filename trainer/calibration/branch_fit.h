// The fit of one layer's attention branch: head map, W_v, W_o and W_c, each on its own or together
// (docs/calibration.md).
#pragma once
#include <optional>

#include "calibration/ridge.h"
#include "calibration/rows.h"
#include "model/config.h"
#include "parallel/process_group.h"
#include "plan/plan.h"

namespace uniattn {

struct FitTargets {
  bool head_map = true, value = true, output = true, compensation = true;
};

struct BranchProblem {
  const ModelConfig& config;
  Branch start;  // the layer's own weights, without compensation
  FitTargets fit;
  Compensation compensation;    // the form of W_c, when it is fitted
  std::optional<double> ridge;  // empty: chosen on the held-out rows
  const RowStream& rows;
  at::Device device;
  bool survey = false;  // also tell what each direction of W_c explains
};

struct BranchFit {
  Branch branch;
  LowRank factors;  // of branch.compensation, when its rank is low
  double ridge = 0;
  int64_t sweeps = 0;              // of W_v that were kept
  std::vector<double> energies{};  // with `survey`: of the directions of W_c, as energies_of_last_block gives them
};

// W_o and W_c are one ridge problem on [heads, x], in terms of the change of W_o. With `value`, W_v and [W_o, W_c] are
// refitted in turns while the held-out error falls. With `head_map`, maps that look better on the ranking rows are
// fitted on all rows, before and after the turns, and the best by held-out error is kept; never one that is worse than
// what `start` gives. Throws Error when activations are not finite.
BranchFit fit_branch(const BranchProblem& problem, ProcessGroup& group);

}  // namespace uniattn
