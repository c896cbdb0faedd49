#include "calibration/head_map.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "calibration/branch_sums.h"
#include "calibration/head_screen.h"
#include "calibration/ridge.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr int kSweeps = 2;

// Whether one held-out error is less than another by more than rounding: maps that permute the heads of a group are the
// same fit once W_o is refitted, and which of them is found must not depend on rounding.
bool is_less(double error, double least) {
  return error < least - (std::isfinite(least) ? 1e-9 * std::abs(least) : 0);
}

at::Tensor pick(const at::Tensor& m, const at::Tensor& rows, const at::Tensor& columns) {
  return m.index_select(0, rows).index_select(1, columns);
}

// Sums of some features, those inside, against the others and the target Y.
struct Parts {
  at::Tensor inside;   // F_i^T [F_i, Y]
  at::Tensor outside;  // F_o^T [F_i, Y]
  at::Tensor square;   // F_o^T F_o
};

Parts parts_of(const Gram& sums, const at::Tensor& outside, const at::Tensor& inside) {
  return {at::cat({pick(sums.ff, inside, inside), sums.fy.index_select(0, inside)}, 1),
          at::cat({pick(sums.ff, outside, inside), sums.fy.index_select(0, outside)}, 1),
          pick(sums.ff, outside, outside)};
}

// The first `inside` features and the rest.
Parts parts_at(const Gram& sums, int64_t inside) {
  const at::Tensor all = at::cat({sums.ff.narrow(1, 0, inside), sums.fy}, 1);
  const int64_t outside = sums.ff.size(0) - inside;
  return {all.narrow(0, 0, inside), all.narrow(0, inside, outside),
          sums.ff.narrow(0, inside, outside).narrow(1, inside, outside)};
}

Gram gram_of(const at::Tensor& inside) {
  const int64_t features = inside.size(0);
  Gram sums(0, 0);
  sums.ff = inside.narrow(1, 0, features);
  sums.fy = inside.narrow(1, features, inside.size(1) - features);
  return sums;
}

// What is left of the features inside and of the target when `b` [outside, inside + targets] times the features outside
// is taken from them. Overwrites parts.inside.
Gram without(const Parts& parts, const at::Tensor& b) {
  const int64_t inside = parts.inside.size(0);
  const at::Tensor left = parts.outside - product(parts.square, b);
  return gram_of(parts.inside.sub_(product(parts.outside.narrow(1, 0, inside).t(), b))
                     .sub_(product(b.narrow(1, 0, inside).t(), left)));
}

// The same where `b` solves the ridge problem of the features outside: what is left is the ridge problem of those
// inside, with their own ridge still to be added.
Gram eliminated(const Parts& parts, const at::Tensor& b) {
  return gram_of(parts.inside.sub_(product(parts.outside.narrow(1, 0, parts.inside.size(0)).t(), b)));
}

// The outside features' least squares for the others and the target, under `ridge` times `unit`.
at::Tensor solve_outside(const Parts& fitted, double unit, double ridge) {
  const at::Tensor b =
      solve_regularised(fitted.square, fitted.outside, at::full({fitted.square.size(0)}, unit, at::kDouble), ridge);
  if (!b.defined()) fail("activations are not finite");
  return b;
}

double mean_diagonal(const at::Tensor& ff) {
  const double mean = ff.numel() > 0 ? ff.diagonal().mean().item<double>() : 0;
  return mean > 0 ? mean : 1.0;
}

// Coordinate descent over the maps that screened candidates allow, on sums that hold all of them.
class MapSearch {
 public:
  MapSearch(const ModelConfig& config, const Branch& branch, const Refit& refit, std::vector<HeadMap> candidates)
      : branch_(branch),
        refit_(refit),
        candidates_(std::move(candidates)),
        heads_(config.num_heads),
        head_dim_(config.head_dim),
        groups_(static_cast<int64_t>(candidates_.size())),
        per_group_(heads_ / groups_),
        rounds_(static_cast<int64_t>(candidates_.front().size()) / per_group_) {}

  // Sums of every candidate's output and x, from which x is then projected out.
  void gather(const RowStream& rows, ProcessGroup& group) {
    const int64_t width = rounds_ * heads_ * head_dim_, targets = branch_.o.size(0);
    const int64_t inputs = refit_.compensation ? targets : 0;
    sums_ = {Gram(width + inputs, targets), Gram(width + inputs, targets)};
    rows({.ranking = true}, [&](const FitRows& some) {
      std::vector<at::Tensor> features;
      for (int64_t round = 0; round < rounds_; ++round)
        features.push_back(branch_heads(some, branch_.v, map_of_round(round)));
      if (refit_.compensation) features.push_back(some.x);
      (some.held_out ? sums_.held_out : sums_.fitted).add(scaled(some, at::cat(features, 1)), some.target, at::kFloat);
    });
    for (Gram* sums : {&sums_.fitted, &sums_.held_out}) sums->all_reduce(group);
    unit_ = mean_diagonal(sums_.fitted.block(0, width).ff);
    if (inputs == 0) return;
    const at::Tensor b =
        solve_outside(parts_at(sums_.fitted, width), mean_diagonal(sums_.fitted.block(width, inputs).ff), refit_.ridge);
    sums_.fitted = eliminated(parts_at(sums_.fitted, width), b);  // one after the other: they are large
    sums_.held_out = without(parts_at(sums_.held_out, width), b);
  }

  // Descends from `map`. With `matches`, also notes the best leader head of every head while the others stay.
  HeadMap descend(HeadMap map, HeadMap* matches) const {
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      const HeadMap before = map;
      for (int64_t g = 0; g < groups_; ++g) {
        const SplitGram sums = without_others(map, g);
        if (matches && sweep == 0) note_matches(sums, g, before, *matches);
        improve(sums, g, map);
      }
      if (map == before) break;
    }
    return map;
  }

  // Held-out error of a map, up to a constant.
  double error(const HeadMap& map) const {
    std::vector<int64_t> columns;
    for (int64_t g = 0; g < groups_; ++g)
      for (const int64_t column : columns_of(g, of_group(map, g, per_group_))) columns.push_back(column);
    return error(sums_, at::tensor(columns, at::kLong), branch_.o);
  }

 private:
  // Candidates of all groups, as many as there are query heads.
  HeadMap map_of_round(int64_t round) const {
    HeadMap map;
    for (const HeadMap& candidates : candidates_)
      map.insert(map.end(), candidates.begin() + round * per_group_, candidates.begin() + (round + 1) * per_group_);
    return map;
  }

  // Where the sums hold the outputs of group g under these leader heads.
  std::vector<int64_t> columns_of(int64_t g, const HeadMap& choice) const {
    std::vector<int64_t> columns;
    for (const int64_t leader : choice) {
      const HeadMap& known = candidates_[g];
      const int64_t index = std::find(known.begin(), known.end(), leader) - known.begin();
      const int64_t head = index / per_group_ * heads_ + g * per_group_ + index % per_group_;
      for (int64_t d = 0; d < head_dim_; ++d) columns.push_back(head * head_dim_ + d);
    }
    return columns;
  }

  // Sums of group g's candidates, in their order, with everything else that is fitted projected out, or, where W_o
  // stays, taken away.
  SplitGram without_others(const HeadMap& map, int64_t g) const {
    std::vector<int64_t> others;
    for (int64_t other = 0; other < groups_; ++other)
      if (other != g)
        for (const int64_t column : columns_of(other, of_group(map, other, per_group_))) others.push_back(column);
    const at::Tensor outside = at::tensor(others, at::kLong),
                     inside = at::tensor(columns_of(g, candidates_[g]), at::kLong);
    const Parts fitted = parts_of(sums_.fitted, outside, inside), held_out = parts_of(sums_.held_out, outside, inside);
    if (refit_.output) {
      const at::Tensor b = solve_outside(fitted, unit_, refit_.ridge);
      return {eliminated(fitted, b), without(held_out, b)};
    }
    const int64_t width = per_group_ * head_dim_, begin = g * width;
    const at::Tensor w =
        at::cat({branch_.o.narrow(1, 0, begin), branch_.o.narrow(1, begin + width, branch_.o.size(1) - begin - width)},
                1)
            .t()
            .to(at::kCPU, at::kDouble);
    const at::Tensor b = at::cat({at::zeros({w.size(0), inside.size(0)}, at::kDouble), w}, 1);
    return {without(fitted, b), without(held_out, b)};
  }

  // Held-out error, up to a constant, of these columns with W_o refitted, or as it is: `o` [D, columns].
  double error(const SplitGram& sums, const at::Tensor& columns, const at::Tensor& o) const {
    at::Tensor w;
    if (refit_.output) {
      w = solve_regularised(pick(sums.fitted.ff, columns, columns), sums.fitted.fy.index_select(0, columns),
                            at::full({columns.size(0)}, unit_, at::kDouble), refit_.ridge);
      if (!w.defined()) return std::numeric_limits<double>::infinity();
    } else {
      w = o.t().to(at::kCPU, at::kDouble);
    }
    const Gram& held = sums.held_out;
    return (w * (product(pick(held.ff, columns, columns), w) - 2 * held.fy.index_select(0, columns)))
        .sum()
        .item<double>();
  }

  // The same when the heads of group g read the leader heads `choice`, of without_others(map, g).
  double error(const SplitGram& sums, int64_t g, const HeadMap& choice) const {
    std::vector<int64_t> columns;
    for (const int64_t leader : choice) {
      const int64_t index = std::find(candidates_[g].begin(), candidates_[g].end(), leader) - candidates_[g].begin();
      for (int64_t d = 0; d < head_dim_; ++d) columns.push_back(index * head_dim_ + d);
    }
    const int64_t width = per_group_ * head_dim_;
    return error(sums, at::tensor(columns, at::kLong), branch_.o.narrow(1, g * width, width));
  }

  // The best leader head for place `place` of a group's choice.
  int64_t best_for(const SplitGram& sums, int64_t g, HeadMap choice, int64_t place) const {
    const int64_t current = choice[place];
    int64_t best = current;
    double least = error(sums, g, choice);
    for (const int64_t leader : candidates_[g]) {
      if (leader == current) continue;
      choice[place] = leader;
      const double candidate = error(sums, g, choice);
      if (is_less(candidate, least)) least = candidate, best = leader;
    }
    return best;
  }

  void note_matches(const SplitGram& sums, int64_t g, const HeadMap& map, HeadMap& matches) const {
    for (int64_t place = 0; place < per_group_; ++place)
      matches[g * per_group_ + place] = best_for(sums, g, of_group(map, g, per_group_), place);
  }

  void improve(const SplitGram& sums, int64_t g, HeadMap& map) const {
    for (bool moved = true; moved;) {
      moved = false;
      for (int64_t place = 0; place < per_group_; ++place) {
        int64_t& leader = map[g * per_group_ + place];
        const int64_t best = best_for(sums, g, of_group(map, g, per_group_), place);
        moved |= best != leader;
        leader = best;
      }
    }
  }

  const Branch& branch_;
  const Refit& refit_;
  std::vector<HeadMap> candidates_;  // by KV group
  int64_t heads_, head_dim_, groups_, per_group_;
  int64_t rounds_;   // candidates of a group by its number of query heads
  double unit_ = 1;  // what a ridge of 1 adds to a head's diagonal
  SplitGram sums_{Gram(0, 0), Gram(0, 0)};
};

}  // namespace

HeadMap search_head_map(const ModelConfig& config, const Branch& branch, const Refit& refit, const RowStream& rows,
                        ProcessGroup& group) {
  HeadMap start = branch.head_map;
  if (start.empty()) {
    start.resize(config.num_heads);
    std::iota(start.begin(), start.end(), 0);
  }
  MapSearch search(config, branch, refit, screen_heads(config, branch, start, refit, rows, group));
  search.gather(rows, group);
  HeadMap matches = start;
  const HeadMap from_start = search.descend(start, &matches);
  const HeadMap from_matches = matches == from_start ? from_start : search.descend(matches, nullptr);
  const HeadMap best = is_less(search.error(from_matches), search.error(from_start)) ? from_matches : from_start;
  return best == start ? branch.head_map : best;
}

}  // namespace uniattn
