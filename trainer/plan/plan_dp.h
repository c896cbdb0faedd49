// The best combinations of segments into a plan, by dynamic programming over the layers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace uniattn {

// Layers [begin, end) that a plan may change together, what that saves and what it costs. Layers in no segment stay as
// they are, which saves and costs nothing.
struct PlanSegment {
  int64_t begin = 0, end = 0;
  int64_t saving = 0;  // above 0, in whatever unit the budget counts
  double cost = 0;     // may be negative
};

// A plan's total saving is at least `least`, and not above `most`.
struct SavingRange {
  int64_t least = 0, most = INT64_MAX;
};

struct PlanChoice {
  std::vector<size_t> segments;  // numbers of the chosen segments, by layer
  double cost = 0;               // their sum
};

// The `count` choices of disjoint segments of least cost (fewer when there are not as many), best first. Equal costs
// keep an order that depends on the arguments alone. Time: segments x distinct savings x count.
std::vector<PlanChoice> best_plans(int64_t num_layers, const std::vector<PlanSegment>& segments, SavingRange range,
                                   int64_t count);

}  // namespace uniattn
