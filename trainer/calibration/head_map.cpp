#include "calibration/head_map.h"

#include <ATen/ATen.h>

#include <limits>
#include <numeric>

#include "calibration/ridge.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr int kDescents = 4;

using Map = std::vector<int64_t>;

// Sums over rows of what one KV group may read, [P_0 V_g .. P_H-1 V_g], against the target, after everything outside
// the group has been projected out (by the coefficients that fit the fitted rows).
struct GroupSums {
  at::Tensor zz, zy;            // fitted: [heads * head_dim, heads * head_dim], [heads * head_dim, D]
  at::Tensor held_zz, held_zy;  // held out
  double ridge_unit = 0;        // mean diagonal of zz before projecting
};

class HeadMapSearch {
 public:
  HeadMapSearch(const ModelConfig& config, const Branch& branch, const Refit& refit, const RowStream& rows,
                ProcessGroup& group)
      : branch_(branch),
        refit_(refit),
        rows_(rows),
        group_(group),
        heads_(config.num_heads),
        kv_heads_(branch.v.size(0) / config.head_dim),
        head_dim_(config.head_dim) {}

  // Descends from `map`. With `matches`, also notes the best leader head of every head while the others stay.
  Map descend(Map map, Map* matches) {
    for (int sweep = 0; sweep < kDescents; ++sweep) {
      const Map before = map;
      for (int64_t g = 0; g < kv_heads_; ++g) {
        const GroupSums sums = gather(map, g);
        if (matches && sweep == 0) note_matches(sums, before, g, *matches);
        improve(sums, g, map);
      }
      if (map == before) break;
    }
    return map;
  }

 private:
  int64_t per_group() const { return heads_ / kv_heads_; }

  // Columns of [heads, x] outside group g that are refitted with it.
  std::vector<int64_t> outside_blocks() const {
    std::vector<int64_t> blocks;
    if (refit_.output) blocks.push_back((heads_ - per_group()) * head_dim_);
    if (refit_.compensation) blocks.push_back(branch_.v.size(1));
    return blocks;
  }

  at::Tensor without_group(const at::Tensor& heads, int64_t g) const {
    const int64_t width = per_group() * head_dim_, begin = g * width;
    return at::cat({heads.narrow(1, 0, begin), heads.narrow(1, begin + width, heads.size(1) - begin - width)}, 1);
  }

  GroupSums gather(const Map& map, int64_t g) {
    const std::vector<int64_t> blocks = outside_blocks();
    const int64_t outside = std::accumulate(blocks.begin(), blocks.end(), int64_t{0});
    const int64_t candidates = heads_ * head_dim_;
    Gram fitted(outside + candidates, branch_.v.size(1)), held_out(outside + candidates, branch_.v.size(1));
    rows_({.ranking = true}, [&](const FitRows& rows) {
      const at::Tensor own_v = branch_.v.narrow(0, g * head_dim_, head_dim_).repeat({kv_heads_, 1});
      const at::Tensor heads = without_group(branch_heads(rows, branch_.v, map), g);
      at::Tensor y = rows.target;
      std::vector<at::Tensor> features;
      if (refit_.output)
        features.push_back(heads);
      else
        y = y - scaled(rows, at::mm(heads, without_group(branch_.o, g).t()));
      if (refit_.compensation) features.push_back(rows.x);
      features.push_back(branch_heads(rows, own_v, {}));
      (rows.held_out ? held_out : fitted).add_in_float32(scaled(rows, at::cat(features, 1)), y);
    });
    fitted.all_reduce(group_);
    held_out.all_reduce(group_);
    return project(fitted, held_out, blocks, outside);
  }

  GroupSums project(const Gram& fitted, const Gram& held, const std::vector<int64_t>& blocks, int64_t outside) const {
    const int64_t candidates = fitted.ff.size(0) - outside;
    auto zz = [&](const Gram& gram) { return gram.ff.narrow(0, outside, candidates).narrow(1, outside, candidates); };
    auto zy = [&](const Gram& gram) { return gram.fy.narrow(0, outside, candidates); };
    GroupSums sums{zz(fitted), zy(fitted), zz(held), zy(held), zz(fitted).diagonal().mean().item<double>()};
    if (outside == 0) return sums;
    auto oo = [&](const Gram& gram) { return gram.ff.narrow(0, 0, outside).narrow(1, 0, outside); };
    auto oz = [&](const Gram& gram) { return gram.ff.narrow(0, 0, outside).narrow(1, outside, candidates); };
    auto oy = [&](const Gram& gram) { return gram.fy.narrow(0, 0, outside); };
    const at::Tensor b = solve_regularised(oo(fitted), at::cat({oz(fitted), oy(fitted)}, 1),
                                           ridge_diagonal(oo(fitted), blocks), refit_.ridge);
    if (!b.defined()) fail("activations are not finite");
    const at::Tensor bz = b.narrow(1, 0, candidates), by = b.narrow(1, candidates, b.size(1) - candidates);
    sums.zz = sums.zz - at::mm(oz(fitted).t(), bz);
    sums.zy = sums.zy - at::mm(oz(fitted).t(), by);
    const at::Tensor cross = at::mm(bz.t(), oz(held)), square = at::mm(bz.t(), oo(held));
    sums.held_zz = sums.held_zz - cross - cross.t() + at::mm(square, bz);
    sums.held_zy = sums.held_zy - at::mm(oz(held).t(), by) - at::mm(bz.t(), oy(held)) + at::mm(square, by);
    return sums;
  }

  // Held-out error, up to a constant, when the heads of group g read the leader heads `choice`.
  double error(const GroupSums& sums, int64_t g, const Map& choice) const {
    std::vector<int64_t> columns;
    for (const int64_t leader : choice)
      for (int64_t d = 0; d < head_dim_; ++d) columns.push_back(leader * head_dim_ + d);
    const at::Tensor index = at::tensor(columns, at::kLong);
    auto pick = [&](const at::Tensor& m) { return m.index_select(0, index).index_select(1, index); };
    at::Tensor w;
    if (refit_.output) {
      const at::Tensor unit = at::full({index.size(0)}, sums.ridge_unit > 0 ? sums.ridge_unit : 1.0, at::kDouble);
      w = solve_regularised(pick(sums.zz), sums.zy.index_select(0, index), unit, refit_.ridge);
      if (!w.defined()) return std::numeric_limits<double>::infinity();
    } else {
      w = branch_.o.narrow(1, g * index.size(0), index.size(0)).t().to(at::kCPU, at::kDouble);
    }
    return (w * (at::mm(pick(sums.held_zz), w) - 2 * sums.held_zy.index_select(0, index))).sum().item<double>();
  }

  Map choice_of(const Map& map, int64_t g) const {
    return {map.begin() + g * per_group(), map.begin() + (g + 1) * per_group()};
  }

  // The best leader head for place `place` of a group's choice.
  int64_t best_for(const GroupSums& sums, int64_t g, Map choice, int64_t place) const {
    const int64_t current = choice[place];
    int64_t best = current;
    double least = error(sums, g, choice);
    for (int64_t leader = 0; leader < heads_; ++leader) {
      if (leader == current) continue;
      choice[place] = leader;
      const double candidate = error(sums, g, choice);
      if (candidate < least) least = candidate, best = leader;
    }
    return best;
  }

  void note_matches(const GroupSums& sums, const Map& map, int64_t g, Map& matches) const {
    for (int64_t place = 0; place < per_group(); ++place)
      matches[g * per_group() + place] = best_for(sums, g, choice_of(map, g), place);
  }

  void improve(const GroupSums& sums, int64_t g, Map& map) const {
    for (bool moved = true; moved;) {
      moved = false;
      for (int64_t place = 0; place < per_group(); ++place) {
        int64_t& leader = map[g * per_group() + place];
        const int64_t best = best_for(sums, g, choice_of(map, g), place);
        moved |= best != leader;
        leader = best;
      }
    }
  }

  const Branch& branch_;
  const Refit& refit_;
  const RowStream& rows_;
  ProcessGroup& group_;
  int64_t heads_, kv_heads_, head_dim_;
};

}  // namespace

std::vector<Map> search_head_maps(const ModelConfig& config, const Branch& branch, const Refit& refit,
                                  const RowStream& rows, ProcessGroup& group) {
  Map start = branch.head_map;
  if (start.empty()) {
    start.resize(config.num_heads);
    std::iota(start.begin(), start.end(), 0);
  }
  HeadMapSearch search(config, branch, refit, rows, group);
  Map matches = start;
  std::vector<Map> found;
  auto keep = [&](const Map& map) {
    if (map != start && std::find(found.begin(), found.end(), map) == found.end()) found.push_back(map);
  };
  keep(search.descend(start, &matches));
  if (matches != start) keep(search.descend(matches, nullptr));
  return found;
}

}  // namespace uniattn
