#include "calibration/head_screen.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "uniattn/ops.h"

namespace uniattn {
namespace {

constexpr int64_t kAlternatives = 1;  // to what each head reads

// Sums over the ranking rows for one KV group, Z_m [T, head_dim] being its values under the leader's head m. In
// float64: a ranking that rounding decides would change with the number of ranks.
struct ScreenSums {
  at::Tensor own;     // Z_m^T Z_m: [heads, head_dim, head_dim]
  at::Tensor across;  // Z_m^T Z_n for the group's heads n as they are: [heads, head_dim, heads of the group * head_dim]
  at::Tensor missing;  // Z_m^T (what the branch misses): [heads, head_dim, D]
};

class HeadScreen {
 public:
  HeadScreen(const ModelConfig& config, const Branch& branch, const HeadMap& map, const Refit& refit)
      : branch_(branch),
        map_(map),
        refit_(refit),
        heads_(config.num_heads),
        head_dim_(config.head_dim),
        groups_(branch.v.size(0) / config.head_dim),
        per_group_(heads_ / groups_) {
    const auto options = branch.v.options().dtype(at::kDouble);
    for (int64_t g = 0; g < groups_; ++g)
      sums_.push_back({at::zeros({heads_, head_dim_, head_dim_}, options),
                       at::zeros({heads_, head_dim_, per_group_ * head_dim_}, options),
                       at::zeros({heads_, head_dim_, branch.o.size(0)}, options)});
  }

  void add(const FitRows& rows) {
    const at::Tensor missing = (rows.target - branch_output(rows, branch_)).t().contiguous();
    for (int64_t g = 0; g < groups_; ++g) {
      const at::Tensor values = branch_.v.narrow(0, g * head_dim_, head_dim_).repeat({groups_, 1});
      const at::Tensor z = scaled(rows, branch_heads(rows, values, {})).t().contiguous();  // [heads * head_dim, T]
      const at::Tensor by_head = z.view({heads_, head_dim_, -1});
      const at::Tensor now =
          by_head.index_select(0, at::tensor(now_in(g), at::dtype(at::kLong).device(z.device()))).flatten(0, 1);
      sums_[g].own += at::bmm(by_head, by_head.transpose(1, 2));
      sums_[g].across += uniattn::linear(z, now).view(sums_[g].across.sizes());
      sums_[g].missing += uniattn::linear(z, missing).view(sums_[g].missing.sizes());
    }
  }

  void all_reduce(ProcessGroup& group) {
    for (ScreenSums& sums : sums_)
      for (at::Tensor* sum : {&sums.own, &sums.across, &sums.missing}) group.all_reduce_sum(*sum);
  }

  // The candidates of group g.
  HeadMap candidates(int64_t g) const {
    std::vector<HeadMap> best;  // of each head of the group, best first
    for (int64_t place = 0; place < per_group_; ++place) best.push_back(ranking(g, place));
    HeadMap found;
    const auto add = [&](int64_t head) {
      if (std::find(found.begin(), found.end(), head) == found.end()) found.push_back(head);
    };
    for (const int64_t head : now_in(g)) add(head);
    const size_t wanted = per_group_ * std::min(1 + kAlternatives, groups_);
    for (int64_t rank = 0; found.size() < wanted; ++rank)
      for (int64_t place = 0; place < per_group_ && found.size() < wanted; ++place) add(best[place][rank]);
    return found;
  }

 private:
  HeadMap now_in(int64_t g) const { return of_group(map_, g, per_group_); }

  // The leader's heads by what each explains in the place of one of the group's heads, best first.
  HeadMap ranking(int64_t g, int64_t place) const {
    const ScreenSums& sums = sums_[g];
    const at::Tensor w =  // [head_dim, D]
        branch_.o.narrow(1, (g * per_group_ + place) * head_dim_, head_dim_).t().to(at::kDouble);
    const at::Tensor missing = sums.missing + at::matmul(sums.across.narrow(2, place * head_dim_, head_dim_), w);
    at::Tensor explained;
    if (refit_.output) {
      const double unit = sums.own.diagonal(0, 1, 2).mean().item<double>();
      const at::Tensor ridge = at::eye(head_dim_, w.options()) * std::max(unit * refit_.ridge, 1e-30);
      const at::Tensor factor = std::get<0>(at::linalg_cholesky_ex(sums.own + ridge));
      explained = at::linalg_solve_triangular(factor, missing, /*upper=*/false).square().sum({1, 2});
    } else {
      explained = (w * (2 * missing - at::matmul(sums.own, w))).sum({1, 2});
    }
    const at::Tensor order = explained.argsort(/*stable=*/true, 0, /*descending=*/true).cpu();
    return {order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + order.numel()};
  }

  const Branch& branch_;
  const HeadMap& map_;
  const Refit& refit_;
  int64_t heads_, head_dim_, groups_, per_group_;
  std::vector<ScreenSums> sums_;  // by KV group
};

}  // namespace

std::vector<HeadMap> screen_heads(const ModelConfig& config, const Branch& branch, const HeadMap& map,
                                  const Refit& refit, const RowStream& rows, ProcessGroup& group) {
  HeadScreen screen(config, branch, map, refit);
  rows({.held_out = false, .ranking = true}, [&](const FitRows& some) { screen.add(some); });
  screen.all_reduce(group);
  std::vector<HeadMap> result;
  for (int64_t g = 0; g < branch.v.size(0) / config.head_dim; ++g) result.push_back(screen.candidates(g));
  return result;
}

}  // namespace uniattn
