// Checkpoints of the published UniAttn code (github.com/Bostoncake/UniAttn), read as this project's.
#pragma once
#include <memory>
#include <string>

#include "checkpoint/model_directory.h"

namespace uniattn {

// Its plan: layer i of [begin, end) follows the nearest layer before it that does not, unless i mod group = 0 (of i
// itself, not of i - begin).
struct PublishedPlan {
  int64_t group = 0, begin = 0, end = 0;
};

struct PublishedCheckpoint {
  ModelDirectory directory;  // with the plan
  // Followers' `v2_proj` under the name of a full compensation. Their left-over q_proj and k_proj are still there.
  std::unique_ptr<TensorSource> tensors;
};

// Throws UsageError for a plan that cannot be, or is not the one that config.json names; Error when some followers have
// a `v2_proj` and others do not, or a layer that is no follower has one. Without any, the plan has no compensation.
PublishedCheckpoint open_published(const std::string& path, const PublishedPlan& plan);

}  // namespace uniattn
