// Least squares for a follower's value projection, by conjugate gradients in passes over the calibration rows: the
// normal matrix, (kv_heads * head_dim * D)^2, is never formed.
#pragma once
#include "calibration/rows.h"
#include "parallel/process_group.h"

namespace uniattn {

// The value projection that brings the branch closest to the target over the fitted rows, starting from branch.v, with
// W_o and the head map as they are. With `compensation` a full W_c moves along (and is dropped: it is refitted
// afterwards), so that V is fitted to what W_c cannot explain. Stopping early is the regulariser. float32 [kv_heads *
// head_dim, D]
at::Tensor fit_value(const Branch& branch, bool compensation, const RowStream& rows, ProcessGroup& group);

}  // namespace uniattn
