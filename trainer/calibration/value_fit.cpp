#include "calibration/value_fit.h"

#include <ATen/ATen.h>

#include "calibration/ridge.h"
#include "model/layer.h"

namespace uniattn {
namespace {

constexpr int kIterations = 12;
constexpr double kTolerance = 1e-6;  // of the squared residual of the preconditioned normal equations
constexpr double kJitter = 1e-6;     // of the mean diagonal, where a preconditioner would be singular

// A change of the value projection and of the compensation, or a gradient with respect to them, one above the other:
// float64 [kv_heads * head_dim (+ D), D].
class ValueProblem {
 public:
  ValueProblem(const Branch& branch, bool compensation, const RowStream& rows, ProcessGroup& group)
      : branch_(branch), compensation_(compensation), rows_(rows), group_(group) {}

  // A^T (target - what the branch gives), and the preconditioner from the same pass.
  at::Tensor residual() {
    at::Tensor gradient = zeros(), inputs = at::zeros({branch_.v.size(1), branch_.v.size(1)}, at::kDouble);
    rows_({.held_out = false}, [&](const FitRows& rows) {
      gradient += adjoint(rows, rows.target - branch_output(rows, branch_));
      const at::Tensor x = scaled(rows, rows.x).to(at::kCPU, at::kDouble);
      inputs += at::mm(x.t(), x);
    });
    group_.all_reduce_sum(gradient);
    group_.all_reduce_sum(inputs);
    inputs_ = factor(inputs);
    return gradient;
  }

  // A^T A p.
  at::Tensor normal(const at::Tensor& p) {
    const at::Tensor narrow = p.to(branch_.v);
    Branch change{
        .v = narrow.narrow(0, 0, branch_.v.size(0)), .o = branch_.o, .compensation = {}, .head_map = branch_.head_map};
    if (compensation_) change.compensation = narrow.narrow(0, branch_.v.size(0), branch_.o.size(0));
    at::Tensor sum = zeros();
    rows_({.held_out = false}, [&](const FitRows& rows) { sum += adjoint(rows, branch_output(rows, change)); });
    group_.all_reduce_sum(sum);
    return sum;
  }

  // P x has about the covariance of x: with it divided out, few iterations are enough.
  at::Tensor precondition(const at::Tensor& r) const { return at::cholesky_solve(r.t(), inputs_).t(); }

 private:
  at::Tensor zeros() const {
    return at::zeros({branch_.v.size(0) + (compensation_ ? branch_.o.size(0) : 0), branch_.v.size(1)}, at::kDouble);
  }

  static at::Tensor factor(const at::Tensor& gram) {
    const at::Tensor jitter = ridge_diagonal(gram, {gram.size(0)}) * kJitter;
    return at::linalg_cholesky(gram + at::diag(jitter));
  }

  at::Tensor adjoint(const FitRows& rows, const at::Tensor& g) const {
    const at::Tensor gs = scaled(rows, g);
    const at::Tensor& q = rows.probs->q;
    const at::Tensor heads = at::mm(gs, branch_.o).view({q.size(0), -1, q.size(2)});
    const at::Tensor dv =
        attend_backward_value(*rows.probs, heads, head_map_tensor(branch_.head_map, q.device())).flatten(1);
    at::Tensor sum = at::mm(dv.t(), rows.x);
    if (compensation_) sum = at::cat({sum, at::mm(gs.t(), rows.x)});
    return sum.to(at::kCPU, at::kDouble);
  }

  const Branch& branch_;
  bool compensation_;
  const RowStream& rows_;
  ProcessGroup& group_;
  at::Tensor inputs_;  // Cholesky factor of x^T x
};

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum().item<double>();
}

}  // namespace

at::Tensor fit_value(const Branch& branch, bool compensation, const RowStream& rows, ProcessGroup& group) {
  ValueProblem problem(branch, compensation, rows, group);
  at::Tensor r = problem.residual();
  at::Tensor z = problem.precondition(r), p = z.clone(), change = at::zeros_like(r);
  double rz = inner_product(r, z);
  const double enough = kTolerance * rz;
  for (int i = 0; i < kIterations && rz > enough; ++i) {
    const at::Tensor ap = problem.normal(p);
    const double step = rz / inner_product(p, ap);
    change += step * p;
    r -= step * ap;
    z = problem.precondition(r);
    const double next = inner_product(r, z);
    p = z + next / rz * p;
    rz = next;
  }
  return branch.v + change.narrow(0, 0, branch.v.size(0)).to(branch.v);
}

}  // namespace uniattn
