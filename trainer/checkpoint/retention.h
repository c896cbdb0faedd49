// Which snapshots stay.
#pragma once
#include <cstdint>
#include <string>

namespace uniattn {

struct Retention {
  int64_t last = 1;  // the newest
  int64_t best = 0;  // besides, those of the lowest held-out loss (their state's `held_out_loss`)
};

// Removes the other snapshots of `directory`, and what killed writers left there. One process at a time, and nobody
// writes a snapshot meanwhile. A kill in between leaves no half snapshot that counts. Throws Error naming the folder
// that cannot be removed.
void prune_snapshots(const std::string& directory, const Retention& keep);

}  // namespace uniattn
