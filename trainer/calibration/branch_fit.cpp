#include "calibration/branch_fit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "calibration/head_map.h"
#include "calibration/value_fit.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr int kSweeps = 4;
constexpr double kLeastRidge = 1e-3;  // of the search for a head map, whose sums are in float32

// A state of the fit and its squared error on the held-out rows.
struct Candidate {
  BranchFit fit;
  double held_out_error = 0;
};

class Fitter {
 public:
  Fitter(const BranchProblem& problem, ProcessGroup& group)
      : problem_(problem),
        fit_(problem.fit),
        low_rank_(problem.fit.compensation && problem.compensation.kind == Compensation::Kind::low_rank),
        group_(group) {}

  BranchFit run() {
    Candidate best{{.branch = problem_.start, .factors = {}}, 0};
    best.held_out_error = gather(problem_.start, false, false).second.yy;
    if (!std::isfinite(best.held_out_error)) fail("activations are not finite");
    consider(solved(problem_.start, problem_.ridge), best);
    if (fit_.head_map) improve_map(best);
    if (!fit_.value) return best.fit;
    sweep(best);
    if (fit_.head_map && improve_map(best)) sweep(best);
    return best.fit;
  }

 private:
  static void consider(Candidate candidate, Candidate& best) {
    if (candidate.held_out_error < best.held_out_error) best = std::move(candidate);
  }

  // Fits the maps that a search from `best` brings up; true when one of them is better.
  bool improve_map(Candidate& best) {
    const BranchFit from = best.fit;
    const bool chosen = from.ridge > 0;
    const Refit refit{fit_.output, fit_.compensation, std::max(kLeastRidge, from.ridge)};
    for (const std::vector<int64_t>& map :
         search_head_maps(problem_.config, from.branch, refit, problem_.rows, group_)) {
      Branch branch = from.branch;
      branch.head_map = map;
      Candidate candidate = solved(branch, chosen ? std::optional(from.ridge) : problem_.ridge);
      candidate.fit.sweeps = from.sweeps;
      consider(std::move(candidate), best);
    }
    return best.fit.branch.head_map != from.branch.head_map;
  }

  // W_v and [W_o, W_c] in turns from `best` on.
  void sweep(Candidate& best) {
    for (int i = 0; i < kSweeps; ++i) {
      const bool free_compensation = fit_.compensation && !low_rank_;
      Branch branch = best.fit.branch;
      branch.v = fit_value(branch, free_compensation, problem_.rows, group_);
      Candidate candidate = low_rank_ ? with_output(branch, best.fit) : solved(branch, best.fit.ridge);
      candidate.fit.sweeps = best.fit.sweeps + 1;
      if (candidate.held_out_error >= best.held_out_error) return;
      best = std::move(candidate);
      if (!fit_.output && !free_compensation) return;  // nothing that would give a second turn something to do
    }
  }

  // [W_o, W_c] for the values and the head map of `branch`, by a ridge that is given or chosen.
  Candidate solved(Branch branch, std::optional<double> ridge) {
    branch.compensation = at::Tensor();
    const auto [fitted, held_out] = gather(branch, fit_.output, fit_.compensation);
    if (fitted.ff.size(0) == 0) return {{.branch = branch, .factors = {}}, held_out.yy};
    const RidgeSolution solution = solve_ridge(fitted, held_out, blocks(fit_.output, fit_.compensation), ridge);
    BranchFit fit{.branch = branch, .factors = {}, .ridge = solution.ridge};
    if (low_rank_) {
      fit.factors = reduce_last_block(solution, fitted, problem_.config.hidden_size, problem_.compensation.rank);
      fit.branch.compensation = at::mm(fit.factors.up, fit.factors.down).to(weights());
      return with_output(fit.branch, fit);
    }
    if (problem_.survey && fit_.compensation) {
      const at::Tensor energies = energies_of_last_block(solution, fitted, problem_.config.hidden_size);
      fit.energies = {energies.const_data_ptr<double>(), energies.const_data_ptr<double>() + energies.numel()};
    }
    apply(solution.w, fit.branch);
    return {fit, solution.held_out_error};
  }

  // W_o alone for a branch whose W_c stays; ridge and factors as in `from`.
  Candidate with_output(const Branch& branch, const BranchFit& from) {
    BranchFit fit = from;
    fit.branch = branch;
    const auto [fitted, held_out] = gather(branch, fit_.output, false);
    if (!fit_.output) return {fit, held_out.yy};
    const RidgeSolution solution = solve_ridge(fitted, held_out, blocks(true, false), from.ridge);
    fit.branch.o = branch.o + solution.w.t().to(branch.o);
    return {fit, solution.held_out_error};
  }

  void apply(const at::Tensor& w, Branch& branch) const {
    const int64_t d = problem_.config.hidden_size;
    if (fit_.compensation) branch.compensation = w.narrow(0, w.size(0) - d, d).t().to(weights()).contiguous();
    if (fit_.output) branch.o = branch.o + w.narrow(0, 0, branch.o.size(1)).t().to(branch.o);
  }

  at::TensorOptions weights() const { return at::dtype(at::kFloat).device(problem_.device); }

  std::vector<int64_t> blocks(bool output, bool compensation) const {
    std::vector<int64_t> sizes;
    if (output) sizes.push_back(problem_.start.o.size(1));
    if (compensation) sizes.push_back(problem_.config.hidden_size);
    return sizes;
  }

  // Gram sums of [heads, x] (those asked for) against what `branch` misses, over the fitted and the held-out rows.
  std::pair<Gram, Gram> gather(const Branch& branch, bool output, bool compensation) {
    int64_t features = 0;
    for (const int64_t size : blocks(output, compensation)) features += size;
    Gram fitted(features, problem_.config.hidden_size), held_out(features, problem_.config.hidden_size);
    problem_.rows({}, [&](const FitRows& rows) {
      std::vector<at::Tensor> f;
      if (output) f.push_back(branch_heads(rows, branch.v, branch.head_map));
      if (compensation) f.push_back(rows.x);
      const at::Tensor missing = rows.target - branch_output(rows, branch);
      (rows.held_out ? held_out : fitted)
          .add(f.empty() ? at::empty({missing.size(0), 0}) : scaled(rows, at::cat(f, 1)), missing);
    });
    fitted.all_reduce(group_);
    held_out.all_reduce(group_);
    return {std::move(fitted), std::move(held_out)};
  }

  const BranchProblem& problem_;
  FitTargets fit_;
  bool low_rank_;
  ProcessGroup& group_;
};

}  // namespace

BranchFit fit_branch(const BranchProblem& problem, ProcessGroup& group) {
  return Fitter(problem, group).run();
}

}  // namespace uniattn
