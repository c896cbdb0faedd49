// Sums over the calibration rows of the features that a branch is refitted with: the heads' outputs and x.
#pragma once
#include <optional>
#include <vector>

#include "calibration/gram.h"
#include "calibration/rows.h"
#include "parallel/process_group.h"

namespace uniattn {

// The same sums over the rows that are fitted and over those held out.
struct SplitGram {
  Gram fitted, held_out;

  SplitGram residual(const at::Tensor& w) const { return {fitted.residual(w), held_out.residual(w)}; }
  SplitGram block(int64_t begin, int64_t count) const {
    return {fitted.block(begin, count), held_out.block(begin, count)};
  }
};

class BranchSums {
 public:
  // The features are `heads` columns of the heads' outputs (0: W_o is not fitted) and then `inputs` of x (0: W_c is
  // not); the target has `targets` columns.
  BranchSums(int64_t heads, int64_t inputs, int64_t targets, const RowStream& rows, ProcessGroup& group)
      : heads_(heads), inputs_(inputs), targets_(targets), rows_(rows), group_(group) {}

  // Sums of the features against what they have to explain: the target, or, where W_o is not fitted, what the heads
  // leave of it. One pass over the rows; what no branch changes is summed in the first alone.
  SplitGram gather(const Branch& branch);

 private:
  Gram joined(const Gram& heads, const Gram& inputs) const;

  int64_t heads_, inputs_, targets_;
  const RowStream& rows_;
  ProcessGroup& group_;
  std::optional<SplitGram> inputs_sums_;  // of x, and ||target||^2
};

}  // namespace uniattn
