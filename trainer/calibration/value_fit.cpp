#include "calibration/value_fit.h"

#include <ATen/ATen.h>

#include "calibration/ridge.h"
#include "model/layer.h"

namespace uniattn {
namespace {

constexpr int kIterations = 4;
constexpr double kTolerance = 1e-6;  // of the squared residual of the preconditioned normal equations
constexpr double kInputsJitter = 1e-6, kOutputsJitter = 1e-3;  // of the mean diagonals of the preconditioner

at::Tensor jittered_cholesky(const at::Tensor& gram, double jitter) {
  return at::linalg_cholesky(gram + at::diag(ridge_diagonal(gram, {gram.size(0)}) * jitter));
}

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  return (a * b).sum().item<double>();
}

// A change of the value projection and of the compensation, or a gradient with respect to them, one above the other:
// float64 [kv_heads * head_dim (+ D), D].
class ValueProblem {
 public:
  ValueProblem(const Branch& branch, bool compensation, int64_t head_dim, const RowStream& rows, ProcessGroup& group)
      : branch_(branch), compensation_(compensation), head_dim_(head_dim), rows_(rows), group_(group) {}

  // A^T (target - what the branch gives), and the preconditioner from the same pass. `inputs` is x^T x; summed where
  // it is undefined.
  at::Tensor residual(at::Tensor& inputs) {
    const bool sum_inputs = !inputs.defined();
    if (sum_inputs) inputs = at::zeros({branch_.v.size(1), branch_.v.size(1)}, at::kDouble);
    at::Tensor gradient = zeros(), energies = at::zeros({branch_.o.size(1)}, at::kDouble);
    rows_({.held_out = false}, [&](const FitRows& rows) {
      const at::Tensor heads = branch_heads(rows, branch_.v, branch_.head_map);
      gradient += adjoint(rows, rows.target - branch_output(rows, branch_, heads));
      energies += scaled(rows, heads).square().sum(0, false, at::kDouble).cpu();
      if (!sum_inputs) return;
      const at::Tensor x = scaled(rows, rows.x).to(at::kCPU, at::kDouble);
      inputs += at::mm(x.t(), x);
    });
    group_.all_reduce_sum(gradient);
    group_.all_reduce_sum(energies);
    if (sum_inputs) group_.all_reduce_sum(inputs);
    precondition_by(inputs, energies);
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

  at::Tensor precondition(const at::Tensor& r) const {
    const at::Tensor right = at::cholesky_solve(r.t(), inputs_).t();
    const int64_t values = branch_.v.size(0), groups = outputs_.size(0), d = outputs_.size(1);
    const at::Tensor left =
        at::cholesky_solve(right.narrow(0, 0, values).reshape({groups, d, -1}), outputs_).reshape({values, -1});
    return at::cat({left, right.narrow(0, values, r.size(0) - values)});
  }

 private:
  at::Tensor zeros() const {
    return at::zeros({branch_.v.size(0) + (compensation_ ? branch_.o.size(0) : 0), branch_.v.size(1)}, at::kDouble);
  }

  // The normal matrix of KV group g is about the product of x^T x and of the sum over its heads of s W_o^T W_o, s being
  // how much smaller than x its mean under P is. With both divided out, few iterations are enough.
  void precondition_by(const at::Tensor& inputs, const at::Tensor& energies) {
    inputs_ = jittered_cholesky(inputs, kInputsJitter);
    const int64_t d = head_dim_, heads = branch_.o.size(1) / d, groups = branch_.v.size(0) / d;
    const at::Tensor v = branch_.v.to(at::kCPU, at::kDouble), o = branch_.o.to(at::kCPU, at::kDouble);
    const at::Tensor plain = (at::mm(v, inputs) * v).sum(1).view({groups, 1, d}).sum(2);  // if P were the identity
    const at::Tensor shrunk = energies.view({groups, heads / groups, d}).sum(2) / plain.clamp_min(1e-300);
    const at::Tensor columns = o.t().reshape({groups, heads / groups, d, -1});
    const at::Tensor squares = (at::matmul(columns, columns.transpose(2, 3)) * shrunk.unsqueeze(2).unsqueeze(3)).sum(1);
    std::vector<at::Tensor> factors;
    for (const at::Tensor& square : squares.unbind(0)) factors.push_back(jittered_cholesky(square, kOutputsJitter));
    outputs_ = at::stack(factors);
  }

  at::Tensor adjoint(const FitRows& rows, const at::Tensor& g) const {
    const at::Tensor gs = scaled(rows, g);
    const at::Tensor& q = rows.probs->q;
    const at::Tensor heads = uniattn::linear(gs, branch_.o.t()).view({q.size(0), -1, q.size(2)});
    const at::Tensor dv =
        attend_backward_value(*rows.probs, heads, head_map_tensor(branch_.head_map, q.device())).flatten(1);
    const at::Tensor outputs = compensation_ ? at::cat({dv, gs}, 1) : dv;
    return uniattn::linear(outputs.t(), rows.x.t()).to(at::kCPU, at::kDouble);
  }

  const Branch& branch_;
  bool compensation_;
  int64_t head_dim_;
  const RowStream& rows_;
  ProcessGroup& group_;
  at::Tensor inputs_;   // Cholesky factor of x^T x
  at::Tensor outputs_;  // [groups, head_dim, head_dim] Cholesky factors of the groups' weighted W_o^T W_o
};

}  // namespace

at::Tensor ValueFit::fit(const Branch& branch, bool compensation) {
  ValueProblem problem(branch, compensation, head_dim_, rows_, group_);
  at::Tensor r = problem.residual(inputs_);
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
