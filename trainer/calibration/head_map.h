// Search for a follower's head map: which of the leader's attention patterns each of its query heads reads.
#pragma once
#include <vector>

#include "calibration/rows.h"
#include "model/config.h"
#include "parallel/process_group.h"

namespace uniattn {

using HeadMap = std::vector<int64_t>;  // by query head, the leader's head

// The part of a map that belongs to KV group g, which has `per_group` query heads.
inline HeadMap of_group(const HeadMap& map, int64_t g, int64_t per_group) {
  return {map.begin() + g * per_group, map.begin() + (g + 1) * per_group};
}

// What is refitted before a map is judged: W_o, W_c, or both.
struct Refit {
  bool output = true, compensation = true;
  double ridge = 1e-3;  // as in solve_ridge
};

// A map that is no worse than branch.head_map by the held-out error after the refit, on the ranking rows; `branch` is
// fitted to its map. Candidates are screened (screen_heads), their sums are gathered once, and coordinate descent from
// branch.head_map and from the best match of every head alone goes on among them. share_probs only. Memory: Gram sums
// of at most 2 * heads * head_dim + D features.
HeadMap search_head_map(const ModelConfig& config, const Branch& branch, const Refit& refit, const RowStream& rows,
                        ProcessGroup& group);

}  // namespace uniattn
