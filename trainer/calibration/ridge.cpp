#include "calibration/ridge.h"

#include <ATen/ATen.h>

#include <limits>
#include <numeric>

#include "support/error.h"

namespace uniattn {
namespace {

const std::vector<double> kRidges = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0};

// What a ridge of 1 adds to the diagonal: each block's mean, or 1 where a block is all zero and any value gives W = 0.
at::Tensor ridge_diagonal(const at::Tensor& ff, const std::vector<int64_t>& blocks) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& block : ff.diagonal().split_with_sizes(blocks)) {
    const double mean = block.mean().item<double>();
    parts.push_back(at::full_like(block, mean > 0 ? mean : 1.0));
  }
  return at::cat(parts);
}

// (FF + ridge * diagonal)^-1 FY, or an undefined tensor when the matrix is not positive definite in float64.
at::Tensor solve(const at::Tensor& ff, const at::Tensor& fy, const at::Tensor& diagonal, double ridge) {
  const auto [factor, info] = at::linalg_cholesky_ex(ff + at::diag(diagonal * ridge));
  return info.item<int>() == 0 ? at::cholesky_solve(fy, factor) : at::Tensor();
}

}  // namespace

RidgeSolution solve_ridge(const Gram& fitted, const Gram& held_out, const std::vector<int64_t>& blocks,
                          std::optional<double> ridge) {
  for (const at::Tensor& sums : {fitted.ff, fitted.fy, held_out.ff, held_out.fy})
    if (!at::isfinite(sums).all().item<bool>()) fail("activations are not finite");
  const at::Tensor diagonal = ridge_diagonal(fitted.ff, blocks);
  RidgeSolution best{.w = {}, .held_out_error = std::numeric_limits<double>::infinity()};
  for (const double candidate : ridge ? std::vector<double>{*ridge} : kRidges) {
    const at::Tensor w = solve(fitted.ff, fitted.fy, diagonal, candidate);
    if (!w.defined()) continue;
    const double error = held_out.error(w);
    if (error < best.held_out_error) best = {w, candidate, 0, error};
  }
  if (!best.w.defined())
    fail("the least-squares problem is singular; give a larger `calibration.ridge` or more calibration text");
  best.error = fitted.error(best.w);
  return best;
}

LowRank reduce_last_block(RidgeSolution& solution, const Gram& fitted, const Gram& held_out,
                          const std::vector<int64_t>& blocks, int64_t rank) {
  const int64_t last = blocks.back(), before = fitted.ff.size(0) - last;
  const at::Tensor inputs = fitted.ff.narrow(0, before, last).narrow(1, before, last);
  const at::Tensor w = solution.w.narrow(0, before, last);
  // Project the fitted values on their `rank` strongest directions; eigenvalues ascend.
  const at::Tensor directions =
      std::get<1>(at::linalg_eigh(at::mm(w.t(), at::mm(inputs, w)))).narrow(1, w.size(1) - rank, rank).contiguous();
  const LowRank factors{directions, at::mm(w, directions).t().contiguous()};
  const at::Tensor reduced = at::mm(factors.down.t(), factors.up.t());
  solution.w = solution.w.clone();
  solution.w.narrow(0, before, last).copy_(reduced);
  if (before > 0) {
    const std::vector<int64_t> front(blocks.begin(), blocks.end() - 1);
    const at::Tensor ff = fitted.ff.narrow(0, 0, before).narrow(1, 0, before);
    const at::Tensor fy =
        fitted.fy.narrow(0, 0, before) - at::mm(fitted.ff.narrow(0, 0, before).narrow(1, before, last), reduced);
    solution.w.narrow(0, 0, before).copy_(solve(ff, fy, ridge_diagonal(ff, front), solution.ridge));
  }
  solution.error = fitted.error(solution.w);
  solution.held_out_error = held_out.error(solution.w);
  return factors;
}

}  // namespace uniattn
