// What training costs, from shapes alone (docs/scaling.md): memory, traffic, time.
#pragma once
#include "config/config.h"
#include "model/config.h"
#include "parallel/sharding.h"
#include "train/trained_set.h"

namespace uniattn {

// How many ranks there are and what they divide.
struct Division {
  Shard shard = Shard::none;
  int64_t world_size = 1, replicas = 1;
  bool staged = true;  // on CPUs: Gloo's sums go through a buffer of their own

  int64_t holders() const { return shard == Shard::none ? world_size : replicas; }  // of each slice
  int64_t slices() const { return world_size / holders(); }
};

// Bytes at the fullest moment of a step, of the memory that the rank computes in; `host` besides.
struct MemoryEstimate {
  int64_t parameters = 0;   // in the compute dtype, those that are always there
  int64_t masters = 0;      // float32 values of trained parameters, where the compute dtype is another
  int64_t gradients = 0;    // float32 sums
  int64_t moments = 0;      // of AdamW
  int64_t activations = 0;  // estimate
  int64_t buffers = 0;      // gathered parameters, gradients of the part under way, what is being sent
  int64_t teacher = 0;      // the base model, where the stage distills
  int64_t host = 0;         // masters, moments and what is exchanged with them, where these are offloaded
  int64_t total() const { return parameters + masters + gradients + moments + activations + buffers + teacher; }
};

// Bytes that one rank sends in an optimizer step.
struct TrafficEstimate {
  int64_t reduce_scatter = 0;  // gradients, float32
  int64_t all_gather = 0;      // parameters, compute dtype
  int64_t all_reduce = 0;      // gradients of slices over replicas, float32
};

class StageEstimate {
 public:
  // `stage`: index into config.stages.
  StageEstimate(const Config& config, const ModelConfig& model, const SharingPlan& plan, const SharingPlan& base_plan,
                int64_t stage, const Division& division);

  MemoryEstimate memory() const;
  TrafficEstimate traffic() const;
  double flops() const;  // of one rank in a step, attention counted as causal

 private:
  // Flat sizes of a part's groups, in elements.
  struct Part {
    int64_t trained = 0, carried = 0, frozen = 0;
    int64_t all() const { return trained + carried + frozen; }
  };
  int64_t sum(int64_t Part::*size) const;
  MemoryEstimate constant_memory() const;
  int64_t needed_by(size_t part) const;
  int64_t activation_bytes() const;
  int64_t gathered_bytes(int64_t part) const;
  int64_t reduction_bytes(int64_t part) const;
  int64_t gradient_bytes(int64_t part) const;
  bool keeps_sums() const;
  bool sums_wait() const;

  const Config& config_;
  const ModelConfig& model_;
  const SharingPlan& plan_;
  const StageConfig& stage_;
  Division division_;
  std::vector<Part> parts_;
  int64_t teacher_elements_ = 0;
  int64_t bytes_;  // of an element in the compute dtype
};

}  // namespace uniattn
