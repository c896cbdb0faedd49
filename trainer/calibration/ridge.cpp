#include "calibration/ridge.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "support/error.h"

namespace uniattn {
namespace {

const std::vector<double> kRidges = {1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0};

// All ridges from one eigendecomposition of the scaled Gram matrix S = D^-1/2 FF D^-1/2 = U diag(e) U^T: in the basis U
// every solution is diag(1 / (e + ridge)) B with the same B.
class RidgePath {
 public:
  RidgePath(const Gram& fitted, const std::vector<int64_t>& blocks)
      : scale_(ridge_diagonal(fitted.ff, blocks).rsqrt().unsqueeze(1)) {
    const auto [values, vectors] = at::linalg_eigh(fitted.ff * scale_ * scale_.t());
    values_ = values.clamp_min(0);
    basis_ = scale_ * vectors;
    projected_ = product(basis_.t(), fitted.fy);
  }

  at::Tensor solution(double ridge) const { return product(basis_, projected_ / (values_ + ridge).unsqueeze(1)); }

  // ||Y - F W||^2 on other rows, for every ridge.
  std::vector<double> errors(const Gram& rows, const std::vector<double>& ridges) const {
    const at::Tensor linear = (projected_ * product(basis_.t(), rows.fy)).sum(1);
    const at::Tensor quadratic = product(basis_.t(), product(rows.ff, basis_)) * product(projected_, projected_.t());
    std::vector<double> result;
    for (const double ridge : ridges) {
      const at::Tensor g = 1 / (values_ + ridge);
      result.push_back(rows.yy + (at::dot(g, at::mv(quadratic, g)) - 2 * at::dot(g, linear)).item<double>());
    }
    return result;
  }

 private:
  at::Tensor scale_, values_, basis_, projected_;
};

at::Tensor last_block(const RidgeSolution& solution, int64_t block) {
  return solution.w.narrow(0, solution.w.size(0) - block, block);
}

// (F W)^T F W over the rows that were fitted, for the last features: w [block, targets].
at::Tensor fitted_products(const at::Tensor& w, const Gram& fitted) {
  const int64_t block = w.size(0), before = fitted.ff.size(0) - block;
  return product(w.t(), product(fitted.ff.narrow(0, before, block).narrow(1, before, block), w));
}

}  // namespace

at::Tensor ridge_diagonal(const at::Tensor& ff, const std::vector<int64_t>& blocks) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& block : ff.diagonal().split_with_sizes(blocks)) {
    const double mean = block.numel() > 0 ? block.mean().item<double>() : 0;
    parts.push_back(at::full_like(block, mean > 0 ? mean : 1.0));
  }
  return at::cat(parts);
}

at::Tensor solve_regularised(const at::Tensor& ff, const at::Tensor& fy, const at::Tensor& diagonal, double ridge) {
  const auto [factor, info] = at::linalg_cholesky_ex(ff + at::diag(diagonal * ridge));
  return info.item<int>() == 0 ? at::cholesky_solve(fy, factor) : at::Tensor();
}

RidgeSolution solve_ridge(const Gram& fitted, const Gram& held_out, const std::vector<int64_t>& blocks,
                          std::optional<double> ridge) {
  for (const at::Tensor& sums : {fitted.ff, fitted.fy, held_out.ff, held_out.fy})
    if (!at::isfinite(sums).all().item<bool>()) fail("activations are not finite");
  RidgeSolution solution;
  if (ridge) {
    solution.ridge = *ridge;
    solution.w = solve_regularised(fitted.ff, fitted.fy, ridge_diagonal(fitted.ff, blocks), *ridge);
    if (!solution.w.defined())
      fail("the least-squares problem is singular; give a larger `calibration.ridge` or more calibration text");
  } else {
    const RidgePath path(fitted, blocks);
    const std::vector<double> errors = path.errors(held_out, kRidges);
    solution.ridge = kRidges[std::min_element(errors.begin(), errors.end()) - errors.begin()];
    solution.w = path.solution(solution.ridge);
  }
  solution.error = fitted.error(solution.w);
  solution.held_out_error = held_out.error(solution.w);
  return solution;
}

LowRank reduce_last_block(const RidgeSolution& solution, const Gram& fitted, int64_t block, int64_t rank) {
  const at::Tensor w = last_block(solution, block);
  // Project the fitted values on their `rank` strongest directions; eigenvalues ascend.
  const at::Tensor directions =
      std::get<1>(at::linalg_eigh(fitted_products(w, fitted))).narrow(1, w.size(1) - rank, rank).contiguous();
  return {directions, product(w, directions).t().contiguous()};
}

at::Tensor energies_of_last_block(const RidgeSolution& solution, const Gram& fitted, int64_t block) {
  return at::linalg_eigvalsh(fitted_products(last_block(solution, block), fitted)).clamp_min(0).flip(0);
}

}  // namespace uniattn
