// Ridge regression from Gram sums, its strength chosen on held-out rows, and its low-rank form.
#pragma once
#include <optional>
#include <vector>

#include "calibration/gram.h"

namespace uniattn {

struct RidgeSolution {
  at::Tensor w;      // [features, targets] float64
  double ridge = 0;  // relative to the mean diagonal of each block
  double error = 0;  // ||Y - F W||^2 on the rows that were fitted
  double held_out_error = 0;
};

// Minimises ||Y - F W||^2 + sum over blocks of ridge * mean(diag F_b^T F_b) * ||W_b||^2. `blocks` are the sizes of
// consecutive groups of features, so that groups of different scale are shrunk alike. An empty `ridge` takes the value
// of 1e-8, 1e-7, .., 10 with the least error on `held_out`; one eigendecomposition serves them all. Throws Error when
// the sums are not finite, or a given ridge leaves the problem singular.
RidgeSolution solve_ridge(const Gram& fitted, const Gram& held_out, const std::vector<int64_t>& blocks,
                          std::optional<double> ridge);

// What a ridge of 1 adds to the diagonal of `ff`: each block's mean, or 1 where a block is all zero and any value gives
// W = 0. [features]
at::Tensor ridge_diagonal(const at::Tensor& ff, const std::vector<int64_t>& blocks);

// (FF + ridge * diagonal)^-1 FY by Cholesky; undefined when the matrix is not positive definite in float64.
at::Tensor solve_regularised(const at::Tensor& ff, const at::Tensor& fy, const at::Tensor& diagonal, double ridge);

// The best approximation of the last block of a solution by rank `rank` in the metric of its inputs (reduced-rank
// regression, Izenman 1975): up [targets, rank], down [rank, block], with w_block^T = up * down.
struct LowRank {
  at::Tensor up, down;
};
LowRank reduce_last_block(const RidgeSolution& solution, const Gram& fitted, int64_t block, int64_t rank);

// What each direction of the last block's fitted values explains of them: the eigenvalues, descending, that
// reduce_last_block cuts off. [targets]
at::Tensor energies_of_last_block(const RidgeSolution& solution, const Gram& fitted, int64_t block);

}  // namespace uniattn
