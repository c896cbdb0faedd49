// The dynamic programme over layers against enumeration of every plan.
#include <algorithm>
#include <random>

#include "catch.h"
#include "plan/plan_dp.h"

using namespace uniattn;

namespace {

// Every choice of disjoint segments, in any order of cost.
void enumerate(int64_t layer, int64_t num_layers, const std::vector<PlanSegment>& segments, PlanChoice taken,
               int64_t saving, std::vector<std::pair<PlanChoice, int64_t>>& all) {
  if (layer == num_layers) {
    all.emplace_back(taken, saving);
    return;
  }
  enumerate(layer + 1, num_layers, segments, taken, saving, all);
  for (size_t s = 0; s < segments.size(); ++s) {
    if (segments[s].begin != layer) continue;
    PlanChoice longer{taken.segments, taken.cost + segments[s].cost};
    longer.segments.push_back(s);
    enumerate(segments[s].end, num_layers, segments, longer, saving + segments[s].saving, all);
  }
}

std::vector<double> best_costs(int64_t num_layers, const std::vector<PlanSegment>& segments, SavingRange range,
                               size_t count) {
  std::vector<std::pair<PlanChoice, int64_t>> all;
  enumerate(0, num_layers, segments, {}, 0, all);
  std::vector<double> costs;
  for (const auto& [choice, saving] : all)
    if (saving >= range.least && saving <= range.most) costs.push_back(choice.cost);
  std::ranges::sort(costs);
  costs.resize(std::min(costs.size(), count));
  return costs;
}

}  // namespace

TEST_CASE("best_plans finds what enumeration finds", "[plan][plan_dp]") {
  std::mt19937 random(GENERATE(range(0u, 60u)));
  const auto integer = [&](int64_t low, int64_t high) { return std::uniform_int_distribution(low, high)(random); };
  const int64_t layers = integer(1, 8), longest = integer(1, 4), kinds = integer(1, 2);
  std::vector<PlanSegment> segments;
  for (int64_t begin = 0; begin < layers; ++begin)
    for (int64_t end = begin + 1; end <= std::min(begin + longest, layers); ++end)
      for (int64_t kind = 0; kind < kinds; ++kind)  // of unlike savings; a few costs are gains
        segments.push_back({begin, end, (end - begin) * (kind == 0 ? 1 : integer(1, 9)),
                            std::uniform_real_distribution<double>(-0.1, 1.0)(random)});
  const int64_t least = integer(0, layers + 2), count = integer(1, 12);
  for (const SavingRange range : {SavingRange{least, least}, SavingRange{least, INT64_MAX}}) {
    const std::vector<PlanChoice> found = best_plans(layers, segments, range, count);
    const std::vector<double> expected = best_costs(layers, segments, range, static_cast<size_t>(count));
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      CHECK(found[i].cost == Approx(expected[i]).margin(1e-12));
      double cost = 0;
      int64_t saving = 0, layer = 0;
      for (const size_t s : found[i].segments) {
        CHECK(segments[s].begin >= layer);
        layer = segments[s].end;
        cost += segments[s].cost;
        saving += segments[s].saving;
      }
      CHECK(cost == found[i].cost);
      CHECK(saving >= range.least);
      CHECK(saving <= range.most);
    }
  }
}

TEST_CASE("best_plans returns nothing when no plan saves enough", "[plan][plan_dp]") {
  CHECK(best_plans(3, {{0, 2, 1, 0.5}}, {2, INT64_MAX}, 4).empty());
  CHECK(best_plans(3, {}, {1, 1}, 4).empty());
}

TEST_CASE("best_plans gives no plan twice", "[plan][plan_dp]") {
  const std::vector<PlanSegment> segments = {{0, 2, 1, 0.5}, {1, 3, 1, 0.5}, {2, 4, 1, 0.5}};
  const std::vector<PlanChoice> found = best_plans(4, segments, {1, INT64_MAX}, 100);
  CHECK(found.size() == 4);
  for (size_t i = 0; i < found.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK(found[i].segments != found[j].segments);
}
