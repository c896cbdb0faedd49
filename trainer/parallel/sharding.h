// How the state of training is divided over the ranks (docs/distributed.md).
#pragma once
#include <string>

#include "parallel/communicator.h"
#include "parallel/process_group.h"

namespace uniattn {

// What a rank holds only its slice of; each includes what comes before it.
enum class Shard {
  none,       // nothing: every rank holds all (data parallel)
  optimizer,  // master weights and moments (ZeRO-1)
  gradients,  // gradient sums (ZeRO-2)
  full,       // the parameters for compute themselves (ZeRO-3)
};

// none | optimizer | gradients | full; throws UsageError for another name.
Shard parse_shard(const std::string& name);
const char* to_string(Shard shard);

// The world as `replicas` groups of neighbouring ranks. State is sliced within a group; ranks with the same slice, one
// in each group, keep it equal. `none` is one rank per group. Every state tensor is cut into world_size pieces: a
// rank's slice is `pieces_per_slice` of them, and it is the keeper of one, so that work done once per element (norms,
// snapshots) is shared by all.
struct Sharding {
  Shard strategy = Shard::none;
  int64_t world_size = 1;
  Communicator slices;    // the ranks of this group
  Communicator replicas;  // the ranks with this rank's slice
  bool offload = false;   // masters and moments lie in host memory, and the update is computed there

  int64_t pieces_per_slice() const { return replicas.size(); }
  int64_t kept_piece() const { return slices.rank() * replicas.size() + replicas.rank(); }
};

// Connects the groups. Throws UsageError when `replicas` does not divide the world size.
Sharding make_sharding(ProcessGroup& group, Shard strategy, int64_t replicas, at::Device device);

}  // namespace uniattn
