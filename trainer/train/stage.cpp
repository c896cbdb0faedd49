#include "train/stage.h"

#include <chrono>
#include <cmath>

#include "train/device_probe.h"
#include "train/schedule.h"
#include "train/trained_set.h"

namespace uniattn {
namespace {

Parameters::RoleOf roles(const Decoder& model, const TrainedSet& set, const TensorSource* carried) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : tensor_specs(model.config, model.plan)) names.push_back(spec.name);
  check_trained_set(set, names);
  return [&set, carried](const std::string& name) {
    if (is_trained(set, name)) return Role::trained;
    return carried && carried->contains(name) ? Role::carried : Role::frozen;
  };
}

}  // namespace

struct Stage::Share {
  struct MicroBatch {
    Batch batch;
    double weight;  // 0 where it only keeps the ranks together
  };
  std::vector<MicroBatch> batches;
  StepTokens tokens;  // of the whole step, over all ranks
  StepFlops flops;    // likewise
};

Loader make_loader(const Config& config, const TokenShards& shards, int64_t index, int64_t rows_per_step) {
  return Loader(shards, {.max_length = config.data.max_length,
                         .rows_per_step = rows_per_step,
                         .pack = config.data.pack,
                         .seed = config.run.seed + index});
}

Stage::Stage(const TrainingRun& run, int64_t index, int64_t steps, Decoder& model, const Decoder* teacher,
             const TensorSource& weights, const TensorSource* carried, const Sharding& sharding, at::Device device,
             double peak_flops)
    : run_(run),
      config_(run.config.stages[index]),
      steps_(steps),
      device_(device),
      parameters_(model, weights, roles(model, config_.train, carried), sharding, parse_dtype(run.config.model.dtype),
                  device),
      optimizer_(parameters_, run.config.optimizer),
      loader_(make_loader(run.config, run.train, index, run.rows_per_step())),
      objective_(config_, model, teacher),
      flops_(model.config, model.plan, config_.train, run.config.data.max_length),
      peak_flops_(peak_flops) {}

TensorParts Stage::weights() const {
  TensorParts parts;
  for (const Role role : {Role::trained, Role::carried})
    for (const Segment& segment : parameters_.segments(role))
      if (segment.kept > 0) parts.push_back(kept_part(segment, segment.name, segment.master));
  return parts;
}

StepMetrics Stage::step(int64_t step) {
  const auto start = std::chrono::steady_clock::now();
  const Share share = fetch(step);
  StepMetrics metrics{.at = {.stage = config_.name, .step = step + 1, .stage_steps = steps_}};
  metrics.tokens = share.tokens.all;
  metrics.supervised_tokens = share.tokens.supervised;
  forward_and_backward(share, metrics);
  metrics.learning_rate = learning_rate(run_.config.optimizer, config_.learning_rate, step, steps_);
  update(metrics);
  metrics.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double available = metrics.seconds * peak_flops_ * static_cast<double>(run_.group.world_size());
  metrics.mfu = share.flops.dense / available;
  metrics.mfu_causal = share.flops.causal / available;
  metrics.peak_memory_bytes = peak_memory_bytes(device_);
  return metrics;
}

Stage::Share Stage::fetch(int64_t step) const {
  const auto rows = loader_.rows(step);
  Share share;
  std::vector<int64_t> lengths;
  int64_t tokens = 0, supervised = 0;
  for (int64_t micro = 0; micro < run_.config.optimizer.accumulation; ++micro) {
    const auto documents =
        micro_batch(rows, micro, run_.config.optimizer.accumulation, run_.group.rank(), run_.group.world_size());
    // Ranks pass through the model together: one without rows takes a token without a loss.
    const Batch batch = documents.empty() ? make_silent_batch(rows[0][0]) : make_batch(documents);
    share.batches.push_back({to_device(batch, device_), documents.empty() ? 0.0 : 1.0});
    supervised += batch.supervised;
    for (const Document& document : documents) {
      lengths.push_back(static_cast<int64_t>(document.tokens.size()));
      tokens += lengths.back();
    }
  }
  const StepFlops own = flops_.count(lengths);
  at::Tensor totals =
      at::tensor({static_cast<double>(tokens), static_cast<double>(supervised), own.dense, own.causal}, at::kDouble);
  run_.group.all_reduce_sum(totals);
  const auto total = totals.accessor<double, 1>();
  share.tokens = {static_cast<int64_t>(total[0]), static_cast<int64_t>(total[1])};
  share.flops = {total[2], total[3]};
  return share;
}

void Stage::forward_and_backward(const Share& share, StepMetrics& metrics) {
  parameters_.begin_step();
  at::Tensor losses = at::zeros({2}, at::dtype(at::kDouble).device(device_));
  for (size_t i = 0; i < share.batches.size(); ++i) {
    parameters_.begin_micro_batch(/*last=*/i + 1 == share.batches.size());
    const auto& [batch, weight] = share.batches[i];
    const Loss loss = objective_(batch, share.tokens);
    (loss.total * weight).backward();
    parameters_.end_micro_batch();
    losses[0] += loss.cross_entropy * weight;
    if (loss.distillation.defined()) losses[1] += loss.distillation * weight;
  }
  const std::vector<double> of_ranks = run_.group.all_gather(losses[0].item<double>());
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
    metrics.loss += of_ranks[rank];
    if (!std::isfinite(of_ranks[rank])) metrics.failed_ranks.push_back(static_cast<int64_t>(rank));
  }
  if (config_.distill) metrics.distill_loss = run_.group.sum(losses[1].item<double>());
  metrics.gradient_norm = parameters_.gradient_norm(run_.group);
}

void Stage::update(StepMetrics& metrics) {
  metrics.updated = std::isfinite(metrics.gradient_norm);
  if (!metrics.updated) return;
  const double limit = run_.config.optimizer.clip_norm;
  if (limit > 0 && metrics.gradient_norm > limit) parameters_.scale_gradients(limit / metrics.gradient_norm);
  optimizer_.step(parameters_, metrics.learning_rate);
}

}  // namespace uniattn
