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

// Nothing is sent before the last micro-batch: until then whole sums wait.
bool StageEstimate::sums_wait() const {
  return !keeps_sums() && division_.shard != Shard::full && config_.optimizer.accumulation > 1;
}

// What is there from the first step to the last.
MemoryEstimate StageEstimate::constant_memory() const {
  const int64_t slices = division_.slices(), trained = sum(&Part::trained), kept = trained + sum(&Part::carried);
  const int64_t divided = division_.shard == Shard::full ? slices : 1;
  const int64_t masters = kept / slices * 4;
  const int64_t moments = trained / slices * (config_.optimizer.moments == "bfloat16" ? 4 : 8);
  MemoryEstimate memory;
  memory.parameters = (kept + sum(&Part::frozen)) * bytes_ / divided;
  memory.teacher = teacher_elements_ * bytes_ / divided;
  if (config_.parallel.offload == "optimizer") {
    memory.host = masters + moments + trained / slices * 4;
    return memory;
  }
  memory.masters = bytes_ == 4 ? 0 : masters;
  memory.moments = moments;
  return memory;
}

MemoryEstimate StageEstimate::memory() const {
  const MemoryEstimate always = constant_memory();
  // Backward goes down through the parts: activations go, gradients come.
  const auto parts = static_cast<int64_t>(parts_.size());
  MemoryEstimate fullest;
  for (int64_t part = 0; part < parts; ++part) {
    MemoryEstimate now = always;
    now.activations = activation_bytes() * (part + 1) / parts;
    now.gradients = gradient_bytes(part);
    now.buffers = gathered_bytes(part) + reduction_bytes(part);
    if (now.total() > fullest.total()) fullest = now;
  }
  return fullest;
}

// Sums and slices while `part` is in its backward.
int64_t StageEstimate::gradient_bytes(int64_t part) const {
  const int64_t slices = division_.slices();
  if (keeps_sums()) return sum(&Part::trained) * 4;
  if (division_.shard == Shard::full && config_.optimizer.accumulation > 1) return sum(&Part::trained) / slices * 4;
  int64_t bytes = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(parts_.size()); ++i) {
    if (i > part) bytes += parts_[i].trained / slices * 4;
    if (i <= part && sums_wait()) bytes += parts_[i].trained * 4;
  }
  return bytes;
}

// While `part` is in its backward: it, and the layer below, which is gathered meanwhile; Gloo receives that in a buffer
// of its own. The embedding's backward does not read it. A teacher's head stays.
int64_t StageEstimate::gathered_bytes(int64_t part) const {
  if (division_.shard != Shard::full || division_.slices() == 1) return 0;
  const int64_t copies = division_.staged ? 2 : 1;
  const bool is_layer = part > 0 && part + 1 < static_cast<int64_t>(parts_.size());
  int64_t elements = stage_.distill ? model_.vocab_size * model_.hidden_size : 0;
  if (part > 0) elements += needed_by(part);
  if (is_layer && part > 1) elements += needed_by(part - 1) * copies;
  return elements * bytes_;
}

// The gradients of a part as backward gives them, beside the sums of the part above it, which are on their way; then
// its own, with the slice that comes of them. The gradient of the head is computed in float32, though it may be frozen,
// and converted.
int64_t StageEstimate::reduction_bytes(int64_t part) const {
  const auto i = static_cast<size_t>(part);
  const int64_t staging = division_.staged && division_.world_size > 1 ? 4 : 0, sums = keeps_sums() ? 0 : 4;
  const bool is_head = i + 1 == parts_.size();
  const int64_t above = is_head ? 0 : parts_[i + 1].trained * (sums + staging);
  const int64_t gradients =
      is_head ? model_.vocab_size * model_.hidden_size * (bytes_ == 4 ? 4 : 4 + bytes_) : parts_[i].trained * bytes_;
  const int64_t own =
      parts_[i].trained * (staging + (sums_wait() ? 0 : sums)) + parts_[i].trained * sums / division_.slices();
  return std::max(gradients + above, own);
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
