// --dry-run: everything that can be checked, and the memory that would be needed, without doing the work.
#pragma once
#include "commands/pipeline.h"

namespace uniattn {

// Reads one sample of each data set, and prints the plan's effect and the memory per rank. Throws what the real command
// would.
void dry_run(const Session& session, bool json);

}  // namespace uniattn
