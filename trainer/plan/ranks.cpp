#include "plan/ranks.h"

#include <algorithm>
#include <numeric>

namespace uniattn {
namespace {

int64_t rank_keeping(const std::vector<double>& energies, double share) {
  const double enough = share * std::accumulate(energies.begin(), energies.end(), 0.0);
  double kept = 0;
  int64_t rank = 0;
  while (kept < enough && rank < static_cast<int64_t>(energies.size())) kept += energies[rank++];
  return rank;
}

// Of all layers' directions the strongest, as many as the budget pays for.
std::vector<int64_t> ranks_within(const std::vector<Spectrum>& spectra, int64_t parameters) {
  struct Direction {
    double energy;
    size_t spectrum;
  };
  std::vector<Direction> directions;
  for (size_t i = 0; i < spectra.size(); ++i)
    for (size_t k = 0; k < spectra[i].energies.size() / 2; ++k) directions.push_back({spectra[i].energies[k], i});
  std::ranges::stable_sort(directions, std::greater{}, &Direction::energy);
  const int64_t cost = spectra.empty() ? 1 : 2 * static_cast<int64_t>(spectra.front().energies.size());
  directions.resize(std::min<size_t>(directions.size(), parameters / cost));
  std::vector<int64_t> ranks(spectra.size());
  for (const Direction& direction : directions) ++ranks[direction.spectrum];
  return ranks;
}

}  // namespace

SharingPlan choose_ranks(SharingPlan plan, const std::vector<Spectrum>& spectra, const RankBudget& budget) {
  std::vector<int64_t> ranks;
  if (budget.energy > 0) {
    for (const Spectrum& spectrum : spectra) ranks.push_back(rank_keeping(spectrum.energies, budget.energy));
  } else {
    ranks = ranks_within(spectra, budget.parameters);
  }
  for (size_t i = 0; i < spectra.size(); ++i) {
    LayerPlan& layer = plan.layers[spectra[i].layer];
    const int64_t rank = layer.mode == Mode::linear ? std::max<int64_t>(ranks[i], 1) : ranks[i];
    const auto size = static_cast<int64_t>(spectra[i].energies.size());
    if (2 * rank >= size) {
      layer.compensation = {.kind = Compensation::Kind::full};
    } else {
      layer.compensation = {.kind = rank > 0 ? Compensation::Kind::low_rank : Compensation::Kind::none, .rank = rank};
    }
  }
  return plan;
}

}  // namespace uniattn
