// One stage of training under way: what it trains, on which data and towards what.
#pragma once
#include "data/loader.h"
#include "train/adamw.h"
#include "train/flops.h"
#include "train/metrics.h"
#include "train/objective.h"
#include "train/training_run.h"

namespace uniattn {

// The loader of stage `index`.
Loader make_loader(const Config& config, const TokenShards& shards, int64_t index, int64_t rows_per_step);

class Stage {
 public:
  // Fills `model` from `weights`; those parameters that `carried` names keep their float32 values though they are
  // frozen. `run`, `model`, `teacher` (null where the stage does not distill) and `sharding` must outlive this object.
  // `peak_flops`: operations per second of each rank's device. Throws UsageError for a trained set that fits nothing.
  Stage(const TrainingRun& run, int64_t index, int64_t steps, Decoder& model, const Decoder* teacher,
        const TensorSource& weights, const TensorSource* carried, const Sharding& sharding, at::Device device,
        double peak_flops);

  // Optimizer step `step` (from 0): forward and backward over the micro-batches, then the update, which is left out
  // when the gradient is not finite. All ranks see the same numbers and decide alike.
  StepMetrics step(int64_t step);

  // What this rank has to save, and back.
  TensorParts weights() const;
  TensorParts moments() const { return optimizer_.state(parameters_, run_.group.rank() == 0); }
  void load_moments(const TensorSource& moments) { optimizer_.load(parameters_, moments); }
  int64_t trained_parameters() const { return parameters_.count(); }

 private:
  struct Share;  // of a step, for this rank
  Share fetch(int64_t step) const;
  void forward_and_backward(const Share& share, StepMetrics& metrics);
  void update(StepMetrics& metrics);

  const TrainingRun& run_;
  const StageConfig& config_;
  int64_t steps_;
  at::Device device_;
  Parameters parameters_;
  AdamW optimizer_;
  Loader loader_;
  Objective objective_;
  FlopCounter flops_;
  double peak_flops_;
};

}  // namespace uniattn
