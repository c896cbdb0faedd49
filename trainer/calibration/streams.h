// The calibration documents on their way through the layers: hidden states of the base and of the unified model.
#pragma once
#include <map>
#include <vector>

#include "data/shards.h"
#include "model/attention.h"
#include "model/batch.h"
#include "parallel/process_group.h"
#include "storage/safetensors.h"

namespace uniattn {

// Some whole documents. While no changed layer has come yet, `unified` is `base`.
struct Chunk {
  Batch batch;
  Sequences sequences;
  bool held_out = false, ranking = false;
  at::Tensor base, unified;  // [T, D] float32: the residual stream before the current layer
  Leaders leaders;           // of the unified stream
};

class Streams {
 public:
  // This rank's documents, the last `held_out` share of all (at least one) held out; their embeddings as both streams.
  // Head maps are ranked on the first documents of either part. States are kept in files below `directory`, in memory
  // when it is empty. Throws UsageError when there are fewer than two documents.
  Streams(const ModelConfig& config, const TensorSource& tensors, const TokenShards& data, double held_out,
          const std::string& directory, ProcessGroup& group, at::Device device);

  std::vector<Chunk>& chunks() { return chunks_; }
  const std::vector<Chunk>& chunks() const { return chunks_; }
  int64_t tokens(bool held_out) const;  // of this rank

  // A state as it is kept between layers.
  at::Tensor keep(const at::Tensor& state) const;
  // The same for what a leader leaves to its followers.
  void keep(LeaderState& state) const;

  // All states by name, for a snapshot, and back.
  NamedTensors save() const;
  void load(const NamedTensors& states);

 private:
  struct Split {
    bool held_out, ranking;
  };
  void add(const TokenShards& data, int64_t begin, int64_t end, Split split, const at::Tensor& embedding,
           ProcessGroup& group);

  const ModelConfig& config_;
  std::string directory_;
  at::Device device_;
  std::vector<Chunk> chunks_;
};

}  // namespace uniattn
