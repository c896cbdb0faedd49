// The training loop: the stages of a configuration, from the newest snapshot to the last step.
#pragma once
#include <optional>

#include "checkpoint/run_directory.h"
#include "data/shards.h"
#include "parallel/process_group.h"

namespace uniattn {

struct TrainingData {
  TokenShards train;
  std::optional<TokenShards> eval;
};

enum class Outcome {
  finished,
  stopped,  // by a signal or after `stop_after` steps, with a snapshot: the same command continues
};

// Runs what is left of the stages. `stop_after` > 0 ends after that many further steps. Throws UsageError when the
// newest snapshot was trained on other data, Error when gradients stay non-finite.
Outcome train(const Config& config, const RunDirectory& run, const ModelDirectory& model, const TrainingData& data,
              ProcessGroup& group, int64_t stop_after = 0);

// Steps of every stage, in order: max_steps, or epochs over the data.
std::vector<int64_t> stage_steps(const Config& config, const TokenShards& train, int64_t world_size);

}  // namespace uniattn
