// prepared.json: what a directory of token shards holds. Written last, so its presence means that the shards are whole.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/prepare.h"

namespace uniattn {

inline constexpr const char* kManifestFile = "prepared.json";

struct ShardEntry {
  std::string file;
  uint64_t bytes = 0;
  std::string hash;
  int64_t documents = 0, tokens = 0;
};

struct SourceEntry {
  std::string path;  // for people; the hash of its contents is part of the manifest's hash
  double weight = 1;
  PrepareCounts counts;
  std::string first_bad;  // place and reason of the first record that was dropped because it cannot be read
};

struct Manifest {
  std::string hash;
  PrepareCounts counts;
  std::vector<SourceEntry> sources;
  std::vector<ShardEntry> shards;
};

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PrepareCounts, read, kept, truncated, split, dropped_bad, dropped_filtered,
                                   dropped_over_long, dropped_without_labels, tokens, supervised, rows)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ShardEntry, file, bytes, hash, documents, tokens)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SourceEntry, path, weight, counts, first_bad)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Manifest, hash, counts, sources, shards)

// "shard-00007.safetensors"
std::string shard_file_name(size_t index);

}  // namespace uniattn
