// One layer that is not as in the base, on its way through calibration: its fit, and the step of both streams over it.
#pragma once
#include <vector>

#include "calibration/base_attention.h"
#include "calibration/calibrate.h"
#include "calibration/rows.h"
#include "calibration/streams.h"

namespace uniattn {

// What is the same for all layers of a calibration.
struct CalibrationSetting {
  const ModelConfig& config;
  const CalibrationOptions& options;
  ProcessGroup& group;
  at::Device device;
  bool survey = false;  // of what the directions of the compensations explain
};

class ChangedLayer {
 public:
  // `base` has the base's weights of layer `index`, `layer` those that it keeps under `plan`.
  ChangedLayer(const CalibrationSetting& setting, SharingPlan& plan, int64_t index, const Layer& base, Layer layer,
               Streams& streams);

  // Fits the branch; puts head map and ranks into the plan and adds what was fitted to `weights`. Throws Error naming
  // the layer.
  LayerReport fit(NamedTensors& weights);

  // Both streams behind the whole layer; its leader's state goes with the last follower.
  void advance();

 private:
  const LayerPlan& layer_plan() const { return plan_.layers[index_]; }
  FitTargets targets() const;
  FitRows rows_of(size_t chunk) const;
  RowStream row_stream() const;
  at::Tensor unified_attention(size_t chunk) const;
  std::pair<double, double> stream_error();
  BranchFit fit_branch_of(const FitTargets& targets);
  void take(const BranchFit& fit, const FitTargets& targets);

  const CalibrationSetting& setting_;
  const ModelConfig& config_;
  SharingPlan& plan_;
  int64_t index_;
  const Layer& base_;
  Layer layer_;
  Streams& streams_;
  std::vector<BaseAttention> base_after_;  // by chunk
  std::vector<LeaderState> own_;           // by chunk: the attention of a full layer with fewer key/value heads
  double base_norm_ = 0;                   // squared, of the base's streams after attention, fitted tokens
};

}  // namespace uniattn
