// The search for a sharing plan under a budget (docs/calibration.md, "Plan search").
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calibration/calibrate.h"
#include "calibration/plan_candidates.h"
#include "calibration/score_log.h"
#include "config/config.h"

namespace uniattn {

struct PlanSearchOptions {
  SearchConfig search;
  CalibrationOptions calibration;  // of the plans that are measured whole
  int64_t context = 0;             // tokens before the one that attention FLOPs are counted for
  std::string directory;           // for the progress of a calibration that is under way
};

// A plan that was calibrated and measured whole.
struct MeasuredPlan {
  std::string name;              // "best 1" (by estimate), "regular 4" (group of 4), or both
  std::vector<size_t> segments;  // numbers of candidates
  SharingPlan plan{};
  double estimate = 0;  // sum of the segments' loss increases
  double loss = 0;      // held out, nats per token, calibrated
};

struct PlanSearchResult {
  bool finished = false;  // false: a signal asked to stop, and the rest is empty
  double base_loss = 0;   // held out
  std::vector<PlanCandidate> candidates;
  std::vector<double> increases{};    // of the held-out loss by each candidate alone
  std::vector<MeasuredPlan> plans{};  // by loss, the best first
};

// Scores every candidate segment alone, composes the plans of least total increase under the budget, and measures the
// best few and the regular ones of as many followers. What `log` knows is not found again. Throws UsageError when no
// plan can meet the budget, before anything is measured.
PlanSearchResult search_plan(const ModelDirectory& model, const TensorSource& tensors, const TokenShards& data,
                             const PlanSearchOptions& options, ScoreLog& log, ProcessGroup& group);

// What the search would do, without doing it: candidates, and passes of the base model over the calibration tokens to
// score them. Throws UsageError as search_plan does.
struct PlanSearchOutline {
  int64_t candidates = 0;
  double passes = 0;
  int64_t calibrations = 0;  // of whole plans, at most
};
PlanSearchOutline outline_search(const ModelConfig& config, const PlanSearchOptions& options);

// Names everything that a score depends on: weights, calibration tokens, and how plans are fitted.
std::string search_fingerprint(const ModelDirectory& model, const TokenShards& data, const PlanSearchOptions& options);

}  // namespace uniattn
