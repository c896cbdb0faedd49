// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over float32 masters, by PyTorch's fused kernel.
#pragma once
#include "config/config.h"
#include "storage/safetensors.h"
#include "train/parameters.h"

namespace uniattn {

class AdamW {
 public:
  AdamW(const TrainedParameters& parameters, const OptimizerConfig& config);

  // One update of the masters from the gradients. Vectors (norm weights) are not decayed.
  void step(const TrainedParameters& parameters, double learning_rate);

  // First and second moments and step counts, by parameter name; load() takes exactly what state() gave.
  NamedTensors state() const;
  void load(const NamedTensors& state);

 private:
  // Parameters that share a weight decay, as indices into TrainedParameters.
  struct Group {
    double weight_decay;
    std::vector<size_t> members;
  };
  OptimizerConfig config_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> first_, second_, steps_;
  std::vector<Group> groups_;
};

}  // namespace uniattn
