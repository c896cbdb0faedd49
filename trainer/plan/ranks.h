// Ranks of compensations, layer by layer, from how much each direction of a full one explains.
#pragma once
#include <vector>

#include "plan/plan.h"

namespace uniattn {

// What chooses the ranks; at most one is above 0, and none leaves the plan's.
struct RankBudget {
  double energy = 0;       // share of what the full matrix explains, to be kept in each layer
  int64_t parameters = 0;  // elements of all chosen compensations together, at most
  bool chooses() const { return energy > 0 || parameters > 0; }
};

// What the directions of layer `layer`'s full compensation explain, descending, in units that compare between layers.
struct Spectrum {
  int64_t layer;
  std::vector<double> energies;  // [D]
};

// Gives the layers of `spectra` the least ranks that keep `energy`, or, direction by direction over all layers, the
// strongest ones that `parameters` pays for. A rank r costs 2 D r elements; from D / 2 on the full matrix costs no more
// and is taken. Rank 0 is no compensation; a linear layer, which is nothing else, keeps at least rank 1.
SharingPlan choose_ranks(SharingPlan plan, const std::vector<Spectrum>& spectra, const RankBudget& budget);

}  // namespace uniattn
