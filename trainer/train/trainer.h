// The training loop: the stages of a configuration, from the newest snapshot to the last step.
#pragma once
#include "train/training_run.h"

namespace uniattn {

enum class Outcome {
  finished,
  stopped,  // by a signal or after `stop_after` steps, with a snapshot: the same command continues
};

struct TrainOptions {
  int64_t stop_after = 0;       // end after so many further steps; 0: at the end
  bool accept_changes = false;  // continue from a snapshot of other data or another batch size
};

// Runs what is left of the stages. Throws UsageError naming what has changed since the newest snapshot, Error when
// gradients stay non-finite.
Outcome train(const TrainingRun& run, const TrainOptions& options = {});

// Steps of every stage, in order: max_steps, or epochs over the data.
std::vector<int64_t> stage_steps(const Config& config, const TokenShards& train, int64_t rows_per_step);

}  // namespace uniattn
