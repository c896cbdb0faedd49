#include "train/schedule.h"

#include <cmath>
#include <numbers>

#include "support/error.h"

namespace uniattn {

double learning_rate(const std::string& schedule, double peak, int64_t step, int64_t total, double warmup_ratio) {
  const auto warmup = static_cast<int64_t>(std::ceil(warmup_ratio * static_cast<double>(total)));
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  const double progress = total > warmup ? static_cast<double>(step - warmup) / static_cast<double>(total - warmup) : 0;
  if (schedule == "cosine") return peak * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  if (schedule == "linear") return peak * (1 - progress);
  if (schedule == "constant") return peak;
  fail_usage("optimizer.schedule `{}` is unknown; known: cosine, linear, constant", schedule);
}

}  // namespace uniattn
