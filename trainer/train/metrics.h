// The numbers of a training run as files: metrics.jsonl, one object per line (docs/training.md).
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace uniattn {

// Where in a run something happened.
struct RunStep {
  std::string stage;
  int64_t step = 0, stage_steps = 0;  // in the stage, step from 1
  int64_t run_step = 0;               // counted over all stages
};

struct StepMetrics {
  RunStep at;
  double loss = 0;                       // cross-entropy in nats per supervised token, before the update
  std::optional<double> distill_loss{};  // in stages that distill
  double learning_rate = 0, gradient_norm = 0;
  std::vector<int64_t> failed_ranks{};        // whose loss is not finite
  bool updated = true;                        // false: the gradient was not finite and the step was left out
  int64_t tokens = 0, supervised_tokens = 0;  // of this step, over all ranks
  double seconds = 0;                         // of this step
  double mfu = 0, mfu_causal = 0;             // model FLOPs utilization, see train/flops.h
  int64_t peak_memory_bytes = 0;              // of rank 0 so far
};

nlohmann::ordered_json to_json(const StepMetrics& metrics);

// Appends one line, on its way to the disk when this returns. Throws Error when it cannot.
void append_line(const std::string& path, const nlohmann::ordered_json& line);

// What a run's files may tell when it goes on: the steps up to its snapshot, so that each is told once although a
// killed process had gone further.
struct ToldSteps {
  int64_t steps = 0;        // over all stages
  bool evaluation = false;  // whether the held-out loss behind the last of them is known
};

// Keeps the lines of those steps.
void trim_lines(const std::string& path, const ToldSteps& told);

}  // namespace uniattn
