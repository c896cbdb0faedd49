// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over float32 masters, by PyTorch's fused kernel.
#pragma once
#include "checkpoint/snapshot.h"
#include "config/config.h"
#include "train/parameters.h"

namespace uniattn {

// Moments of the segments that this rank updates, in float32 or, for half the memory, in bfloat16 with stochastic
// rounding (docs/training.md): what is rounded depends on the update's number and the element alone.
class AdamW {
 public:
  AdamW(const Parameters& parameters, const OptimizerConfig& config);

  // One update of the masters from the gradients. Vectors (norm weights) are not decayed.
  void step(const Parameters& parameters, double learning_rate);

  // What this rank keeps of the moments `exp_avg.NAME` and `exp_avg_sq.NAME`; and the count of updates, `step`.
  TensorParts state(const Parameters& parameters, bool first_rank) const;
  // Takes its slices of what all ranks' state() gave, however many they were. Throws Error when a tensor is missing.
  void load(const Parameters& parameters, const TensorSource& moments);

 private:
  void step_in_bfloat16(const Segment& segment, at::Tensor& first, at::Tensor& second, double learning_rate);
  double decay_of(const Segment& segment) const;

  OptimizerConfig config_;
  at::ScalarType dtype_;                    // of the moments
  std::vector<at::Tensor> first_, second_;  // by segment: [n]
  at::Tensor steps_;                        // [] float32: updates so far
};

}  // namespace uniattn
