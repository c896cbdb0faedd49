// Which of a model's tensors a stage trains.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"

namespace uniattn {

// Whether the tensor of this checkpoint name is trained.
bool is_trained(const TrainedSet& set, const std::string& name);

// Throws UsageError naming a pattern that fits none of `names`, or the set when it trains nothing at all.
void check_trained_set(const TrainedSet& set, const std::vector<std::string>& names);

}  // namespace uniattn
