// Where rank 0 tells how training goes: progress, metrics.jsonl, samples.jsonl and TensorBoard.
#pragma once
#include "checkpoint/run_directory.h"
#include "train/evaluate.h"
#include "train/event_file.h"
#include "train/metrics.h"
#include "train/progress_bar.h"

namespace uniattn {

class Monitor {
 public:
  // What the run's files tell beyond `told` is removed.
  Monitor(const RunDirectory& run, const ToldSteps& told);

  void step(const StepMetrics& metrics);
  void held_out(const RunStep& at, const Evaluation& evaluation);
  void sample(const RunStep& at, const std::string& prompt, const std::string& continuation);
  // A line of the log, below the progress bar.
  void say(const std::string& message);

 private:
  std::string metrics_, samples_;  // paths
  EventFile events_;
  ProgressBar progress_;
};

}  // namespace uniattn
