// Training snapshots: checkpoints/step-N/, complete or absent, written by any number of ranks and read by any other.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "parallel/process_group.h"
#include "storage/safetensors.h"

namespace uniattn {

// Elements [begin, begin + n) of the flattened tensor `name`.
struct TensorPart {
  std::string name;
  std::vector<int64_t> shape;  // of the whole tensor
  int64_t begin = 0;
  at::Tensor values;  // [n]
};
using TensorParts = std::vector<TensorPart>;

// What one rank writes. Together the ranks' parts cover each tensor once.
struct SnapshotParts {
  nlohmann::json state;  // where training stood; that of rank 0 counts
  TensorParts weights;   // float32 masters of every parameter trained so far, by checkpoint name
  TensorParts moments;   // of the stage that is under way
};

// All ranks write `<directory>/step-<step>`, on storage that they share, side by side: each its own files; then rank 0
// the manifest.json with sizes and hashes of all, and the folder gets its name. Returns on all ranks when that is done.
// Older ones stay (checkpoint/retention.h).
void write_snapshot(const std::string& directory, int64_t step, const SnapshotParts& parts, ProcessGroup& group);

// Steps and paths of the complete snapshots, oldest first.
std::vector<std::pair<int64_t, std::string>> list_snapshots(const std::string& directory);

// Path of the newest complete snapshot; folders without a manifest (killed writers') do not count.
std::optional<std::string> newest_snapshot(const std::string& directory);

// A snapshot on disk. The sources map its files; tensors that lie in several parts are put together when asked for.
struct OpenSnapshot {
  nlohmann::json state;
  std::shared_ptr<const TensorSource> weights, moments;
};

// Checks every file against the manifest first. Throws Error naming the one that is missing, torn or altered.
OpenSnapshot open_snapshot(const std::string& path);
// The same on all ranks, which share the checking.
OpenSnapshot open_snapshot(const std::string& path, ProcessGroup& group);

// Whole tensors, of one process.
struct Snapshot {
  nlohmann::json state;
  NamedTensors weights, moments;
};
void write_snapshot(const std::string& directory, int64_t step, const Snapshot& snapshot);
Snapshot read_snapshot(const std::string& path);

}  // namespace uniattn
