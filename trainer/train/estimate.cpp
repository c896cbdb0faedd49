#include "train/estimate.h"

#include <algorithm>

#include "model/decoder.h"
#include "model/footprint.h"
#include "train/flat_group.h"
#include "train/flops.h"

namespace uniattn {
namespace {

// Trained by this stage, or by one before it and kept.
Role role_of(const std::vector<StageConfig>& stages, int64_t stage, const std::string& name) {
  if (is_trained(stages[stage].train, name)) return Role::trained;
  for (int64_t i = 0; i < stage; ++i)
    if (is_trained(stages[i].train, name)) return Role::carried;
  return Role::frozen;
}

// What one of `ranks` sends so that all of them have `bytes` of which each has a share, or a share of their sum.
int64_t all_but_own(int64_t bytes, int64_t ranks) {
  return bytes / ranks * (ranks - 1);
}

}  // namespace

StageEstimate::StageEstimate(const Config& config, const ModelConfig& model, const SharingPlan& plan,
                             const SharingPlan& base_plan, int64_t stage, const Division& division)
    : config_(config),
      model_(model),
      plan_(plan),
      stage_(config.stages[stage]),
      division_(division),
      bytes_(config.model.dtype == "float32" ? 4 : 2) {
  Decoder decoder{.config = model, .plan = plan, .embedding = {}, .final_norm = {}, .head = {}, .layers = {}};
  for (const std::vector<ParameterSlot>& slots : decoder.parts()) {
    std::vector<int64_t> by_role[3];
    for (const ParameterSlot& slot : slots)
      by_role[static_cast<int>(role_of(config.stages, stage, slot.name))].push_back(c10::multiply_integers(slot.shape));
    const auto size = [&](Role role) {
      const std::vector<int64_t>& members = by_role[static_cast<int>(role)];
      return members.empty() ? 0 : flat_size(members, division.world_size);
    };
    parts_.push_back({size(Role::trained), size(Role::carried), size(Role::frozen)});
  }
  if (stage_.distill) teacher_elements_ = total_parameters(model, base_plan);
}

int64_t StageEstimate::sum(int64_t Part::*size) const {
  int64_t total = 0;
  for (const Part& part : parts_) total += part.*size;
  return total;
}

// As Parameters::needed_by: the head of a tied model reads the embedding.
int64_t StageEstimate::needed_by(size_t part) const {
  const bool tied_head = part + 1 == parts_.size() && model_.tied_embeddings;
  return parts_[part].all() + (tied_head ? parts_[0].all() : 0);
}

bool StageEstimate::keeps_sums() const {
  return division_.shard <= Shard::optimizer || division_.slices() == 1;
}

MemoryEstimate StageEstimate::memory() const {
  const int64_t slices = division_.slices(), trained = sum(&Part::trained), carried = sum(&Part::carried);
  const int64_t all = trained + carried + sum(&Part::frozen);
  const bool shards_parameters = division_.shard == Shard::full;
  // With accumulation whole sums wait for the last micro-batch, unless that is what the strategy is to avoid.
  const bool waits = division_.shard == Shard::gradients && config_.optimizer.accumulation > 1;
  MemoryEstimate memory;
  memory.parameters = all * bytes_ / (shards_parameters ? slices : 1);
  memory.masters = bytes_ == 4 ? 0 : (trained + carried) / slices * 4;
  memory.gradients = keeps_sums() ? trained * 4 : trained / slices * 4 + (waits ? trained * 4 : 0);
  memory.moments = trained / slices * (config_.optimizer.moments == "bfloat16" ? 4 : 8);
  memory.activations = activation_bytes();
  memory.buffers = (shards_parameters ? gathered_bytes() : 0) + reduction_bytes();
  memory.teacher = teacher_elements_ * bytes_ / (shards_parameters ? slices : 1);
  return memory;
}

// A part and the next one, which is gathered meanwhile.
int64_t StageEstimate::gathered_bytes() const {
  if (division_.slices() == 1) return 0;
  int64_t most = 0;
  for (size_t i = 0; i + 1 < parts_.size(); ++i) most = std::max(most, needed_by(i) + needed_by(i + 1));
  return most * bytes_;
}

// The gradients of one part as backward gives them, beside the sums of the part behind it, which are on their way.
int64_t StageEstimate::reduction_bytes() const {
  const int64_t whole_sums = keeps_sums() ? 0 : 4, staging = division_.staged && division_.world_size > 1 ? 4 : 0;
  int64_t most = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    const int64_t behind = i + 1 < parts_.size() ? parts_[i + 1].trained * (whole_sums + staging) : 0;
    most = std::max({most, parts_[i].trained * bytes_ + behind, parts_[i].trained * (whole_sums + staging)});
  }
  return most;
}

int64_t StageEstimate::activation_bytes() const {
  const ModelConfig& c = model_;
  const int64_t tokens = config_.data.max_length * config_.optimizer.micro_batch;
  // Tensors that the backward pass of a layer reads: stream, two normed inputs, attention in and out, and four of the
  // MLP's width.
  const int64_t per_layer =
      4 * c.hidden_size + (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim + 4 * c.intermediate_size;
  const int64_t kept =
      config_.optimizer.activation_checkpointing ? c.num_layers * c.hidden_size + per_layer : c.num_layers * per_layer;
  return tokens * (kept * bytes_ + 2 * c.hidden_size * 4) + std::min<int64_t>(tokens, 1024) * c.vocab_size * 8;
}

TrafficEstimate StageEstimate::traffic() const {
  const int64_t slices = division_.slices(), trained = sum(&Part::trained);
  const int64_t passes = division_.shard == Shard::full ? config_.optimizer.accumulation : 1;
  TrafficEstimate traffic;
  traffic.reduce_scatter = all_but_own(trained * 4, slices) * passes;
  traffic.all_reduce = 2 * all_but_own(trained / slices * 4, division_.holders());
  if (division_.shard != Shard::full) {
    traffic.all_gather = all_but_own(trained * bytes_, slices);
    return traffic;
  }
  // Each part before its forward; layers once more before their backward, from the lowest trained part on.
  int64_t gathered = teacher_elements_;
  bool reached = false;
  for (size_t i = 0; i < parts_.size(); ++i) {
    reached |= parts_[i].trained > 0;
    const bool is_layer = i > 0 && i + 1 < parts_.size();
    gathered += needed_by(i) * (is_layer && reached ? 2 : 1);
  }
  traffic.all_gather = all_but_own(gathered * bytes_, slices) * passes;
  return traffic;
}

double StageEstimate::flops() const {
  const OptimizerConfig& o = config_.optimizer;
  const std::vector<int64_t> rows(static_cast<size_t>(o.micro_batch * o.accumulation), config_.data.max_length);
  return FlopCounter(model_, plan_, stage_.train, config_.data.max_length).count(rows).causal;
}

}  // namespace uniattn
