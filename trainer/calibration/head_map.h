// Search for a follower's head map: which of the leader's attention patterns each of its query heads reads.
#pragma once
#include "calibration/rows.h"
#include "model/config.h"
#include "parallel/process_group.h"

namespace uniattn {

// What is refitted before a map is judged: W_o, W_c, or both.
struct Refit {
  bool output = true, compensation = true;
  double ridge = 1e-3;  // as in solve_ridge
};

// Maps worth a fit on all rows, without the one in `branch`: coordinate descent from branch.head_map, and from the best
// match of every head alone. The heads of one KV group move at a time, the others' outputs and x projected out of
// everything, so that a candidate costs one solve of the group's size; it is judged by the held-out error after the
// refit. Uses the ranking rows; share_probs only. Memory: Gram sums of at most 2 * heads * head_dim + D features.
std::vector<std::vector<int64_t>> search_head_maps(const ModelConfig& config, const Branch& branch, const Refit& refit,
                                                   const RowStream& rows, ProcessGroup& group);

}  // namespace uniattn
