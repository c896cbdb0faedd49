// Learning rate over the steps of a stage.
#pragma once
#include <cstdint>

#include "config/config.h"

namespace uniattn {

// The rate of step `step` (from 0) of `total`: it rises linearly over ceil(warmup_ratio * total) steps, reaching `peak`
// in the last of them, then follows `schedule`: cosine or linear down to 0 after the last step, constant, or wsd, which
// is constant and falls linearly to 0 over the last ceil(decay_ratio * total) steps.
double learning_rate(const OptimizerConfig& optimizer, double peak, int64_t step, int64_t total);

}  // namespace uniattn
