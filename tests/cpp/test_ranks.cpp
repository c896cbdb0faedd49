#include "plan/ranks.h"

#include <numeric>
#include <random>

#include "catch.h"

using namespace uniattn;

namespace {

constexpr int64_t kSize = 8;

// Layers 1 to 3 with full compensations, layer 3 linear.
SharingPlan full_compensations() {
  SharingPlan plan = SharingPlan::all_full(4);
  const Compensation full{.kind = Compensation::Kind::full};
  plan.layers[1] = {.mode = Mode::share_probs, .leader = 0, .compensation = full};
  plan.layers[2] = {.mode = Mode::share_probs, .leader = 0, .compensation = full};
  plan.layers[3] = {.mode = Mode::linear, .compensation = full};
  return plan;
}

std::vector<Spectrum> random_spectra(unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> draw;
  std::vector<Spectrum> spectra;
  for (int64_t layer = 1; layer <= 3; ++layer) {
    std::vector<double> energies(kSize);
    for (double& energy : energies) energy = draw(random);
    std::sort(energies.begin(), energies.end(), std::greater{});
    spectra.push_back({layer, energies});
  }
  return spectra;
}

int64_t rank_of(const SharingPlan& plan, int64_t layer) {
  const Compensation& c = plan.layers[layer].compensation;
  return c.kind == Compensation::Kind::full ? kSize : c.rank;
}

int64_t elements(const SharingPlan& plan) {
  int64_t total = 0;
  for (int64_t layer = 1; layer <= 3; ++layer) total += std::min(2 * rank_of(plan, layer) * kSize, kSize * kSize);
  return total;
}

double kept(const Spectrum& spectrum, int64_t rank) {
  return std::accumulate(spectrum.energies.begin(), spectrum.energies.begin() + rank, 0.0);
}

}  // namespace

TEST_CASE("energy keeps its share in every layer, by the least rank", "[ranks]") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    const std::vector<Spectrum> spectra = random_spectra(seed);
    const SharingPlan plan = choose_ranks(full_compensations(), spectra, {.energy = 0.7});
    for (const Spectrum& spectrum : spectra) {
      const int64_t rank = rank_of(plan, spectrum.layer);
      CHECK(kept(spectrum, rank) >= 0.7 * kept(spectrum, kSize) * (1 - 1e-12));
      if (rank < kSize / 2) CHECK(kept(spectrum, rank - 1) < 0.7 * kept(spectrum, kSize));
      CHECK((rank < kSize / 2 || rank == kSize));
    }
  }
}

TEST_CASE("a budget of parameters is kept and goes to the strongest directions", "[ranks]") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    const std::vector<Spectrum> spectra = random_spectra(seed);
    for (int64_t directions = 1; directions <= 12; ++directions) {
      const int64_t budget = directions * 2 * kSize + 5;
      const SharingPlan plan = choose_ranks(full_compensations(), spectra, {.parameters = budget});
      if (rank_of(plan, 3) > 1) CHECK(elements(plan) <= budget);
      double weakest = 1e9, strongest_left = 0;  // none that was left out explains more than one that was taken
      for (const Spectrum& spectrum : spectra) {
        const int64_t rank = std::min(rank_of(plan, spectrum.layer), kSize / 2);
        if (rank > (spectrum.layer == 3)) weakest = std::min(weakest, spectrum.energies[rank - 1]);
        if (rank < kSize / 2) strongest_left = std::max(strongest_left, spectrum.energies[rank]);
      }
      CHECK(strongest_left <= weakest);
    }
  }
}

TEST_CASE("a rank of zero is no compensation, but a linear layer keeps one direction", "[ranks]") {
  std::vector<Spectrum> spectra = random_spectra(0);
  for (Spectrum& spectrum : spectra) std::fill(spectrum.energies.begin(), spectrum.energies.end(), 0.0);
  const SharingPlan plan = choose_ranks(full_compensations(), spectra, {.energy = 0.9});
  CHECK(plan.layers[1].compensation == Compensation{});
  CHECK(plan.layers[3].compensation == Compensation{.kind = Compensation::Kind::low_rank, .rank = 1});
}
