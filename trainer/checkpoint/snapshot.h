// Training snapshots: checkpoints/step-N/, complete or absent.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "storage/safetensors.h"

namespace uniattn {

struct Snapshot {
  nlohmann::json state;  // where training stood
  NamedTensors weights;  // float32 masters of every parameter trained so far, by checkpoint name
  NamedTensors moments;  // of the stage that is under way
};

// Writes `<directory>/step-<step>` beside and renames it; its manifest.json, with sizes and hashes, is the last file
// written. Older ones stay (checkpoint/retention.h).
void write_snapshot(const std::string& directory, int64_t step, const Snapshot& snapshot);

// Steps and paths of the complete snapshots, oldest first.
std::vector<std::pair<int64_t, std::string>> list_snapshots(const std::string& directory);

// Path of the newest complete snapshot; folders without a manifest (a killed writer's) do not count.
std::optional<std::string> newest_snapshot(const std::string& directory);

// Throws Error naming the file that is missing, torn or altered.
Snapshot read_snapshot(const std::string& path);

// The weights alone, mapped, after the same checks.
std::shared_ptr<const TensorSource> snapshot_weights(const std::string& path);

}  // namespace uniattn
