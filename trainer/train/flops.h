// Floating-point operations of a training step, for the model FLOPs utilization (docs/training.md, "MFU").
#pragma once
#include <cstdint>
#include <vector>

#include "config/config.h"
#include "model/config.h"

namespace uniattn {

// One step's share that a rank computes, in two conventions. Recomputation and a teacher do not count.
struct StepFlops {
  double dense = 0;   // attention over max_length keys for every token, as in PaLM (arXiv 2204.02311, appendix B)
  double causal = 0;  // attention over the keys that a token sees
};

class FlopCounter {
 public:
  FlopCounter(const ModelConfig& config, const SharingPlan& plan, const TrainedSet& trained, int64_t max_length);
  // `lengths`: tokens of every document.
  StepFlops count(const std::vector<int64_t>& lengths) const;

 private:
  // Attention of one layer: operations per pair of a query and a key, and the window (0: none).
  struct Pattern {
    double per_pair;
    int64_t window;
  };
  double weights_per_token_ = 0;
  std::vector<Pattern> patterns_;
  int64_t max_length_;
};

}  // namespace uniattn
