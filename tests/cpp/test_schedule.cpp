// Every schedule against its formula, written down a second time.
#include <cmath>
#include <numbers>

#include "catch.h"
#include "support/error.h"
#include "train/schedule.h"

using namespace uniattn;

namespace {

OptimizerConfig with(const std::string& schedule, double warmup, double decay = 0.1) {
  OptimizerConfig config;
  config.schedule = schedule;
  config.warmup_ratio = warmup;
  config.decay_ratio = decay;
  return config;
}

// Share of the peak behind the warm-up, t of n steps after it.
double expected(const std::string& schedule, int64_t t, int64_t n, int64_t decay) {
  const double x = static_cast<double>(t) / static_cast<double>(n);
  if (schedule == "cosine") return std::pow(std::cos(x * std::numbers::pi / 2), 2);
  if (schedule == "linear") return 1 - x;
  if (schedule == "constant") return 1;
  return n - t >= decay ? 1 : static_cast<double>(n - t) / static_cast<double>(decay);
}

}  // namespace

TEST_CASE("learning-rate schedules follow their formulas", "[train]") {
  const std::string schedule = GENERATE("cosine", "linear", "constant", "wsd");
  for (const auto& [total, warmup, decay] :
       {std::tuple{int64_t{100}, 0.1, 0.2}, {int64_t{7}, 0.5, 0.5}, {int64_t{10}, 0.0, 1.0}, {int64_t{1}, 0.0, 0.0}}) {
    const auto warmup_steps = static_cast<int64_t>(std::ceil(warmup * static_cast<double>(total)));
    const auto decay_steps = static_cast<int64_t>(std::ceil(decay * static_cast<double>(total)));
    for (int64_t step = 0; step < total; ++step) {
      const double share = step < warmup_steps
                               ? static_cast<double>(step + 1) / static_cast<double>(warmup_steps)
                               : expected(schedule, step - warmup_steps, total - warmup_steps, decay_steps);
      INFO(schedule << " step " << step << " of " << total);
      CHECK(learning_rate(with(schedule, warmup, decay), 3e-4, step, total) == Approx(3e-4 * share).epsilon(1e-12));
    }
  }
}

TEST_CASE("an unknown schedule is named", "[train]") {
  CHECK_THROWS_AS(learning_rate(with("stairs", 0), 1.0, 0, 1), UsageError);
}
