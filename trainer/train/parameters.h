// The parameters that a stage trains: leaves for compute, float32 masters for the update, float32 gradient sums.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "parallel/process_group.h"
#include "train/trained_set.h"

namespace uniattn {

// Masters outlive stages: what one stage trained keeps its float32 value while a later one leaves it frozen.
using Masters = std::map<std::string, at::Tensor>;

class TrainedParameters {
 public:
  // Parameters outside `set` require no gradient. Missing masters are made from the model's weights; present ones must
  // have the values that the model shows. Throws UsageError when the set, or one of its patterns, fits nothing.
  TrainedParameters(Decoder& model, const TrainedSet& set, Masters& masters);

  const std::vector<std::string>& names() const { return names_; }
  const std::vector<at::Tensor>& masters() const { return masters_; }
  const std::vector<at::Tensor>& gradients() const { return gradients_; }
  int64_t count() const;  // elements

  // Adds the leaves' gradients of one micro-batch to the float32 sums and clears them.
  void accumulate();
  void all_reduce(ProcessGroup& group);
  // The global L2 norm over all gradients.
  double gradient_norm() const;
  void scale_gradients(double factor);
  // Zeroes the sums for the next step.
  void clear();
  // Rounds the updated masters into the model's leaves.
  void publish();

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> leaves_, masters_, gradients_;
};

}  // namespace uniattn
