// What a person watches: metrics.jsonl, a progress bar on a terminal, plain lines otherwise.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace uniattn {

struct StepMetrics {
  std::string stage;
  int64_t step = 0, total_steps = 0;  // in the stage, step from 1
  double loss = 0;                    // nats per supervised token of this step, before the update
  double learning_rate = 0, gradient_norm = 0;
  int64_t tokens = 0, supervised_tokens = 0;  // of this step, over all ranks
  double seconds = 0;                         // of this step
};

// Keeps the first `lines` of metrics.jsonl. What a killed process wrote beyond its last snapshot goes, so that a resumed
// run has each step once.
void trim_metrics(const std::string& path, int64_t lines);
void append_metrics(const std::string& path, const StepMetrics& metrics);

class Progress {
 public:
  void show(const StepMetrics& metrics);
  // Ends the bar's line.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  double tokens_per_second_ = 0, seconds_per_step_ = 0;  // smoothed
  Clock::time_point last_line_{};
  bool bar_open_ = false;
};

}  // namespace uniattn
