#include "calibration/branch_sums.h"

#include <ATen/ATen.h>

namespace uniattn {

SplitGram BranchSums::gather(const Branch& branch) {
  const bool sum_inputs = !inputs_sums_ || heads_ == 0;
  if (sum_inputs) inputs_sums_ = {Gram(inputs_, targets_), Gram(inputs_, targets_)};
  SplitGram heads{Gram(heads_, inputs_ + targets_), Gram(heads_, inputs_ + targets_)};
  rows_({}, [&](const FitRows& rows) {
    const at::Tensor x = scaled(rows, rows.x).narrow(1, 0, inputs_);
    const at::Tensor y = heads_ > 0 ? rows.target : rows.target - branch_output(rows, branch);
    if (heads_ > 0)
      (rows.held_out ? heads.held_out : heads.fitted)
          .add(scaled(rows, branch_heads(rows, branch.v, branch.head_map)), at::cat({x, y}, 1));
    if (sum_inputs) (rows.held_out ? inputs_sums_->held_out : inputs_sums_->fitted).add(x, y);
  });
  for (Gram* sums : {&heads.fitted, &heads.held_out}) sums->all_reduce(group_);
  if (sum_inputs)
    for (Gram* sums : {&inputs_sums_->fitted, &inputs_sums_->held_out}) sums->all_reduce(group_);
  return {joined(heads.fitted, inputs_sums_->fitted), joined(heads.held_out, inputs_sums_->held_out)};
}

Gram BranchSums::joined(const Gram& heads, const Gram& inputs) const {
  Gram sums(0, targets_);
  const at::Tensor between = heads.fy.narrow(1, 0, inputs_);
  sums.ff = at::cat({at::cat({heads.ff, between}, 1), at::cat({between.t(), inputs.ff}, 1)});
  sums.fy = at::cat({heads.fy.narrow(1, inputs_, targets_), inputs.fy});
  sums.yy = inputs.yy;
  return sums;
}

}  // namespace uniattn
