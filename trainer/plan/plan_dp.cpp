#include "plan/plan_dp.h"

#include <algorithm>
#include <map>
#include <utility>

namespace uniattn {
namespace {

// Best first, at most `count` of them.
class Shortlist {
 public:
  void offer(const PlanChoice& choice, int64_t count) {
    const auto place = std::ranges::upper_bound(choices_, choice.cost, {}, &PlanChoice::cost);
    if (place - choices_.begin() >= count) return;
    choices_.insert(place, choice);
    if (std::cmp_greater(choices_.size(), count)) choices_.pop_back();
  }
  const std::vector<PlanChoice>& choices() const { return choices_; }

 private:
  std::vector<PlanChoice> choices_;
};

}  // namespace

std::vector<PlanChoice> best_plans(int64_t num_layers, const std::vector<PlanSegment>& segments, SavingRange range,
                                   int64_t count) {
  // reached[l]: choices over the layers before l, by what they save. Without an upper bound all savings beyond the
  // lower one are equally good, and one state.
  std::vector<std::map<int64_t, Shortlist>> reached(num_layers + 1);
  const auto counted = [&](int64_t saving) { return range.most == INT64_MAX ? std::min(saving, range.least) : saving; };
  reached[0][0].offer({}, count);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    for (const auto& [saving, shortlist] : reached[layer]) {
      for (const PlanChoice& choice : shortlist.choices()) {
        reached[layer + 1][saving].offer(choice, count);
        for (size_t s = 0; s < segments.size(); ++s) {
          const PlanSegment& segment = segments[s];
          if (segment.begin != layer || segment.saving > range.most - saving) continue;
          PlanChoice longer{choice.segments, choice.cost + segment.cost};
          longer.segments.push_back(s);
          reached[segment.end][counted(saving + segment.saving)].offer(longer, count);
        }
      }
    }
  }
  Shortlist best;
  for (const auto& [saving, shortlist] : reached[num_layers])
    for (const PlanChoice& choice : shortlist.choices())
      if (saving >= range.least) best.offer(choice, count);
  return best.choices();
}

}  // namespace uniattn
