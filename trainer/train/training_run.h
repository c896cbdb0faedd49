// What a training run is given.
#pragma once
#include <optional>

#include "checkpoint/run_directory.h"
#include "data/shards.h"
#include "parallel/process_group.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

struct TrainingRun {
  const Config& config;
  const RunDirectory& directory;
  const ModelDirectory& model;
  const Tokenizer& tokenizer;
  TokenShards train;
  std::optional<TokenShards> eval;
  ProcessGroup& group;

  // Rows of an optimizer step, over micro-batches and ranks.
  int64_t rows_per_step() const {
    return config.optimizer.micro_batch * config.optimizer.accumulation * group.world_size();
  }
};

}  // namespace uniattn
