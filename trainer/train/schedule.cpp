#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "support/error.h"

namespace uniattn {

double learning_rate(const OptimizerConfig& optimizer, double peak, int64_t step, int64_t total) {
  const auto share = [&](double ratio) { return std::ceil(ratio * static_cast<double>(total)); };
  const double at = static_cast<double>(step), end = static_cast<double>(total);
  const double warmup = share(optimizer.warmup_ratio), decay = share(optimizer.decay_ratio);
  if (at < warmup) return peak * (at + 1) / warmup;
  const double progress = (at - warmup) / (end - warmup);
  const std::string& schedule = optimizer.schedule;
  if (schedule == "cosine") return peak * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  if (schedule == "linear") return peak * (1 - progress);
  if (schedule == "constant") return peak;
  if (schedule == "wsd") return decay > 0 ? peak * std::min(1.0, (end - at) / decay) : peak;
  fail_usage("optimizer.schedule `{}` is unknown; known: cosine, linear, constant, wsd", schedule);
}

}  // namespace uniattn
