// Least squares for a follower's value projection, by conjugate gradients in passes over the calibration rows: the
// normal matrix, (kv_heads * head_dim * D)^2, is never formed.
#pragma once
#include "calibration/rows.h"
#include "parallel/process_group.h"

namespace uniattn {

class ValueFit {
 public:
  ValueFit(int64_t head_dim, const RowStream& rows, ProcessGroup& group)
      : head_dim_(head_dim), rows_(rows), group_(group) {}

  // x^T x over the fitted rows of all ranks, float64 [D, D], for who has it: else the first fit sums it.
  void know_inputs(const at::Tensor& inputs) { inputs_ = inputs; }

  // The value projection that brings the branch closest to the target over the fitted rows, starting from branch.v,
  // with W_o and the head map as they are. With `compensation` a full W_c moves along (and is dropped: it is refitted
  // afterwards), so that V is fitted to what W_c cannot explain. Stopping early is the regulariser. float32 [kv_heads *
  // head_dim, D]
  at::Tensor fit(const Branch& branch, bool compensation);

 private:
  int64_t head_dim_;
  const RowStream& rows_;
  ProcessGroup& group_;
  at::Tensor inputs_;  // x^T x over the fitted rows, once known: the same for every branch
};

}  // namespace uniattn
