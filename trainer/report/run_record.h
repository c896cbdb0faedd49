// What a run directory tells about its run.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace uniattn {

struct StepRecord {
  double run_step = 0, tokens_seen = 0;                                     // up to and with this step
  double loss = 0, distill_loss = 0, learning_rate = 0, gradient_norm = 0;  // NaN where the run has none
  double tokens = 0, supervised_tokens = 0, seconds = 0, mfu = 0, mfu_causal = 0, peak_memory = 0;
};

struct HeldOutRecord {
  double run_step = 0, tokens_seen = 0, loss = 0;
};

// A follower's relative residual on held-out text before and after its calibration.
struct ResidualRecord {
  double layer = 0, before = 0, after = 0;
};

struct SampleRecord {
  double run_step = 0;
  std::string prompt, text;
};

struct RunRecord {
  std::string path, name;
  std::map<std::string, std::string> settings{};  // every key of config.yaml that is a value, dotted
  std::string outcome = "unfinished";
  std::optional<double> exported_loss{};  // held-out loss of the exported model
  std::vector<StepRecord> steps{};
  std::vector<HeldOutRecord> held_out{};
  std::vector<ResidualRecord> residuals{};
  std::vector<SampleRecord> samples{};
  std::optional<SharingPlan> plan{};      // absent when the base model's config.json is not there
  double parameters = 0, kv_share = 0;  // of the model under the plan{}; KV cache bytes relative to the base

  // Of the newest evaluation: the exported model's, or the last during training.
  std::optional<double> final_held_out_loss() const;
};

// Reads what is there: a run that is under way or was never trained has less. Throws UsageError when `path` is not a
// run directory, Error naming a damaged file.
RunRecord read_run(const std::string& path);

}  // namespace uniattn
