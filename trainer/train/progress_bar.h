// What a person watches: a bar on a terminal, plain lines everywhere else.
#pragma once
#include <chrono>

#include "train/metrics.h"

namespace uniattn {

class ProgressBar {
 public:
  // On a terminal the bar; in the log a line for the first and the last step and one every ten seconds.
  void show(const StepMetrics& metrics);
  // Ends the bar's line, so that other output may follow.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  double tokens_per_second_ = 0, seconds_per_step_ = 0;  // smoothed
  Clock::time_point last_line_{};
  bool open_ = false;
};

}  // namespace uniattn
