// Learning rate over the steps of a stage.
#pragma once
#include <cstdint>
#include <string>

namespace uniattn {

// The rate of step `step` (from 0) of `total`: it rises linearly over ceil(warmup_ratio * total) steps, reaching `peak`
// in the last of them, then follows `schedule`: cosine or linear down to 0 after the last step, or constant.
double learning_rate(const std::string& schedule, double peak, int64_t step, int64_t total, double warmup_ratio);

}  // namespace uniattn
