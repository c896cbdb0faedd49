// --dry-run: everything that can be checked, and the memory that would be needed, without doing the work.
#pragma once
#include "commands/options.h"
#include "commands/pipeline.h"

namespace uniattn {

// Reads one sample of each data set, and prints the plan's effect and, for each stage, the memory and the traffic of
// one rank among `options.world_size`, and the step time on `options.device` if that is given. Throws what the real
// command would.
void dry_run(const Session& session, const RunOptions& options);

}  // namespace uniattn
