// Documents into token shards of bounded size; one shard is in memory at a time.
#pragma once
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/shards.h"

namespace uniattn {

// shard-N.safetensors: tokens I32 [tokens], supervised U8 [tokens], offsets I64 [documents + 1], source I32
// [documents].
class ShardWriter {
 public:
  ShardWriter(std::string directory, size_t max_tokens_per_shard);
  // `source`: number of the data source that the document came from. Throws Error when a full shard cannot be written.
  void add(const Document& document, int32_t source);
  // Writes the last shard and returns all of them.
  std::vector<ShardEntry> finish();

 private:
  void flush();
  std::string directory_;
  size_t max_tokens_;
  std::vector<int32_t> tokens_, sources_;
  std::vector<uint8_t> supervised_;
  std::vector<int64_t> offsets_ = {0};
  std::vector<ShardEntry> shards_;
};

}  // namespace uniattn
