// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over float32 masters, by PyTorch's fused kernel.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "checkpoint/snapshot.h"
#include "config/config.h"
#include "train/parameters.h"

namespace uniattn {

// Moments of the segments that this rank updates, in float32 or, for half the memory, in bfloat16 with stochastic
// rounding (docs/training.md): what is rounded depends on the update's number and the element alone.
class AdamW {
 public:
  AdamW(const Parameters& parameters, const OptimizerConfig& config);

  // One update of the masters from the gradients, and of the parameters from these. Vectors (norm weights) are not
  // decayed.
  void step(Parameters& parameters, double learning_rate);

  // What this rank keeps of the moments `exp_avg.NAME` and `exp_avg_sq.NAME`; and the count of updates, `step`.
  TensorParts state(const Parameters& parameters, bool first_rank) const;
  // Takes its slices of what all ranks' state() gave, however many they were. Throws Error when a tensor is missing.
  void load(const Parameters& parameters, const TensorSource& moments);

 private:
  struct Moments {
    at::Tensor first, second;  // [n], where the segment's master is
  };
  void update(const std::vector<Segment>& segments, double learning_rate);
  void update_in_bfloat16(const Segment& segment, const Moments& moments, double learning_rate);
  double decay_of(const Segment& segment) const;

  OptimizerConfig config_;
  at::ScalarType dtype_;                    // of the moments
  std::map<std::string, Moments> moments_;  // by the segment's name
  at::Tensor steps_;                        // [] float32: updates so far
};

}  // namespace uniattn
