// Tokenized documents on disk (safetensors shards plus prepared.json), read by mapping.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace uniattn {

// tokens[t] is predicted from tokens[0..t); supervised[t] = 1 when that prediction is part of the loss (supervised[0]
// is always 0).
struct Document {
  std::span<const int32_t> tokens;
  std::span<const uint8_t> supervised;
};

struct PrepareCounts;
struct SourceEntry;  // data/manifest.h

class TokenShards {
 public:
  // Opens what prepare_tokens wrote; throws Error when the manifest or a shard is missing, damaged or altered.
  explicit TokenShards(const std::string& directory);
  int64_t size() const;                // documents
  Document document(int64_t i) const;  // valid as long as this object
  int64_t tokens() const;
  int64_t supervised() const;
  const PrepareCounts& counts() const;
  const std::vector<SourceEntry>& sources() const;
  const std::string& hash() const;  // of inputs and options: names the data a checkpoint was trained on
  int32_t source(int64_t i) const;  // number of the data source that document i came from
  double weight(int64_t i) const;   // of that source
  std::vector<Document> documents() const;

 private:
  struct Data;
  std::shared_ptr<const Data> data_;
};

}  // namespace uniattn
