// The init calculation: the followers of a plan by least squares on calibration text, streamed layer by layer
// (docs/calibration.md).
#pragma once
#include <string>
#include <vector>

#include "calibration/branch_fit.h"
#include "checkpoint/model_directory.h"
#include "data/shards.h"
#include "parallel/process_group.h"
#include "plan/ranks.h"

namespace uniattn {

struct CalibrationOptions {
  FitTargets fit;
  std::optional<double> ridge;  // empty: chosen on held-out documents
  double held_out = 0.1;        // share of the documents, at least one
  RankBudget ranks{};           // for compensations that the plan has as full
};

// One layer that is not as in the base. Errors are squared residuals of the stream after attention, relative to the
// base stream's squared norm there.
struct LayerReport {
  int64_t layer = 0, leader = -1;
  double ridge = 0;
  int64_t value_sweeps = 0;
  double before = 0, after = 0;                    // on the fitted tokens, without and with what was fitted
  double held_out_before = 0, held_out_after = 0;  // on held-out tokens
  double seconds = 0;
  std::vector<double> energies{};  // survey of ranks: what each direction of W_c explains, relative as the errors are
};

struct CalibrationResult {
  SharingPlan plan;      // as given, with the head maps and ranks that were found
  NamedTensors weights;  // float32, by checkpoint name
  std::vector<LayerReport> layers;
  int64_t fitted_tokens = 0, held_out_tokens = 0;
};

// Base and unified model run side by side over the documents, one layer's weights in memory, up to the last layer that
// differs. Ranks share the documents. What is done is saved below `directory` every few minutes and when a signal asks
// to stop (the result is then empty); the same call continues there. An empty `directory` keeps everything in memory.
// Ranks are chosen by a first calibration of full compensations alone.
// Throws Error naming the layer when activations are not finite, UsageError when there are fewer than two documents.
std::optional<CalibrationResult> calibrate(const ModelDirectory& model, const TensorSource& tensors,
                                           const SharingPlan& plan, const TokenShards& data,
                                           const CalibrationOptions& options, ProcessGroup& group,
                                           const std::string& directory = {});

}  // namespace uniattn
