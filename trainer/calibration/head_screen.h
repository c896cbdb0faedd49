// Which of the leader's heads are worth an exact comparison in the search for a head map.
#pragma once
#include "calibration/head_map.h"

namespace uniattn {

// For each KV group the leader's heads that its query heads may read, as many for all: those that they read in `map`
// first, then those that explain most of what is missing where one of the group's heads is taken out and all else stays
// as it is in `branch`. One pass over the ranking rows.
std::vector<HeadMap> screen_heads(const ModelConfig& config, const Branch& branch, const HeadMap& map,
                                  const Refit& refit, const RowStream& rows, ProcessGroup& group);

}  // namespace uniattn
