#include "calibration/branch_fit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "calibration/branch_sums.h"
#include "calibration/head_map.h"
#include "calibration/value_fit.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr int kTurns = 4;
constexpr double kLeastGain = 5e-3;   // of the held-out error, that a turn must bring for another one
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
        heads_(problem.fit.output ? problem.start.o.size(1) : 0),
        inputs_(problem.fit.compensation ? problem.config.hidden_size : 0),
        ridge_(problem.ridge),
        sums_(heads_, inputs_, problem.config.hidden_size, problem.rows, group),
        values_(problem.config.head_dim, problem.rows, group),
        group_(group) {}

  BranchFit run() {
    Candidate best = begin();
    if (fit_.head_map) improve_map(best);
    if (fit_.value) take_turns(best);
    return best.fit;
  }

 private:
  static void consider(Candidate candidate, Candidate& best) {
    if (candidate.held_out_error < best.held_out_error) best = std::move(candidate);
  }

  // The start, or W_o and W_c fitted to it where that is better.
  Candidate begin() {
    const SplitGram sums = sums_.gather(problem_.start);
    Candidate best = judged({.branch = problem_.start, .factors = {}}, sums);
    if (!std::isfinite(best.held_out_error)) fail("activations are not finite");
    if (inputs_ > 0) values_.know_inputs(sums.fitted.block(heads_, inputs_).ff.clone());  // not a view of it all
    consider(solved(problem_.start, sums), best);
    return best;
  }

  // Fits the map that a search from `best` brings up.
  void improve_map(Candidate& best) {
    const Refit refit{fit_.output, fit_.compensation, std::max(kLeastRidge, ridge_.value_or(0))};
    Branch branch = best.fit.branch;
    branch.head_map = search_head_map(problem_.config, branch, refit, problem_.rows, group_);
    if (branch.head_map != best.fit.branch.head_map) consider(solved(branch, sums_.gather(branch)), best);
  }

  // W_v and [W_o, W_c] in turns from `best` on.
  void take_turns(Candidate& best) {
    const bool free_compensation = fit_.compensation && !low_rank_;
    const int turns = fit_.output || free_compensation ? kTurns : 1;  // nothing else would give W_v something to do
    for (int turn = 0; turn < turns; ++turn) {
      BranchFit fit = best.fit;
      fit.branch.v = values_.fit(fit.branch, free_compensation);
      const SplitGram sums = sums_.gather(fit.branch);
      Candidate candidate = low_rank_ ? with_output(fit, sums) : solved(fit.branch, sums);
      candidate.fit.sweeps = turn + 1;
      const double before = best.held_out_error;
      consider(std::move(candidate), best);
      if (best.held_out_error > (1 - kLeastGain) * before) return;
    }
  }

  // `fit` as it is.
  Candidate judged(BranchFit fit, const SplitGram& sums) const {
    const double error = sums.held_out.error(weights(fit.branch));
    return {std::move(fit), error};
  }

  // [W_o, W_c] for the values and the head map of `branch`, by a ridge that is given or, the first time, chosen.
  Candidate solved(Branch branch, const SplitGram& sums) {
    branch.compensation = at::Tensor();
    BranchFit fit{.branch = branch, .factors = {}};
    if (heads_ + inputs_ == 0) return judged(fit, sums);
    const SplitGram missing = sums.residual(weights(branch));
    const RidgeSolution solution = solve_ridge(missing.fitted, missing.held_out, {heads_, inputs_}, ridge_);
    ridge_ = fit.ridge = solution.ridge;
    if (low_rank_) {
      fit.factors = reduce_last_block(solution, missing.fitted, inputs_, problem_.compensation.rank);
      fit.branch.compensation = at::mm(fit.factors.up, fit.factors.down).to(weight_options());
      return with_output(fit, sums);
    }
    if (problem_.survey && fit_.compensation) {
      const at::Tensor energies = energies_of_last_block(solution, missing.fitted, inputs_);
      fit.energies = {energies.const_data_ptr<double>(), energies.const_data_ptr<double>() + energies.numel()};
    }
    add(solution.w, fit.branch);
    return {fit, solution.held_out_error};
  }

  // W_o alone for a fit whose W_c stays.
  Candidate with_output(BranchFit fit, const SplitGram& sums) const {
    if (!fit_.output) return judged(std::move(fit), sums);
    const SplitGram missing = sums.residual(weights(fit.branch)).block(0, heads_);
    const RidgeSolution solution = solve_ridge(missing.fitted, missing.held_out, {heads_}, fit.ridge);
    fit.branch.o = fit.branch.o + solution.w.t().to(fit.branch.o);
    return {std::move(fit), solution.held_out_error};
  }

  void add(const at::Tensor& w, Branch& branch) const {
    if (fit_.compensation) branch.compensation = w.narrow(0, heads_, inputs_).t().to(weight_options()).contiguous();
    if (fit_.output) branch.o = branch.o + w.narrow(0, 0, heads_).t().to(branch.o);
  }

  at::TensorOptions weight_options() const { return at::dtype(at::kFloat).device(problem_.device); }

  // What a branch does with the features: [W_o, W_c]^T, as far as they are fitted.
  at::Tensor weights(const Branch& branch) const {
    const int64_t targets = problem_.config.hidden_size;
    const at::Tensor none = at::zeros({0, targets}, at::kDouble);
    const auto rows = [&](const at::Tensor& w) { return w.t().to(at::kCPU, at::kDouble); };
    const at::Tensor compensation =
        branch.compensation.defined() ? rows(branch.compensation) : at::zeros({inputs_, targets}, at::kDouble);
    return at::cat({fit_.output ? rows(branch.o) : none, fit_.compensation ? compensation : none});
  }

  const BranchProblem& problem_;
  FitTargets fit_;
  bool low_rank_;
  int64_t heads_, inputs_;  // features that W_o and W_c are fitted to
  std::optional<double> ridge_;
  BranchSums sums_;
  ValueFit values_;
  ProcessGroup& group_;
};

}  // namespace

BranchFit fit_branch(const BranchProblem& problem, ProcessGroup& group) {
  return Fitter(problem, group).run();
}

}  // namespace uniattn
