#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "checkpoint/snapshot.h"
#include "parallel/device.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"
#include "parallel/sharding.h"
#include "train/adamw.h"
#include "train/evaluate.h"
#include "train/metrics.h"
#include "train/schedule.h"

namespace uniattn {
namespace {

using nlohmann::json;

constexpr int kMaxSkippedSteps = 10;  // in a row, for gradients that are not finite

Loader make_loader(const Config& config, const TokenShards& shards, int64_t stage, int64_t world_size) {
  return Loader(shards, {.max_length = config.data.max_length,
                         .rows_per_step = config.optimizer.micro_batch * config.optimizer.accumulation * world_size,
                         .pack = config.data.pack,
                         .seed = config.run.seed + stage});
}

class Trainer {
 public:
  Trainer(const Config& config, const RunDirectory& run, const ModelDirectory& model, const TrainingData& data,
          ProcessGroup& group)
      : config_(config),
        run_(run),
        data_(data),
        group_(group),
        device_(compute_device(group.local_rank())),
        sharding_(make_sharding(group, parse_shard(config.parallel.shard), config.parallel.replicas, device_)),
        start_(initial_state(run, config, model)),
        model_{model.config, start_.plan, {}, {}, {}, {}, nullptr},
        steps_(stage_steps(config, data.train, group.world_size())) {
    resume();
  }

  Outcome run(int64_t stop_after) {
    const int64_t total = std::accumulate(steps_.begin(), steps_.end(), int64_t{0});
    stop_at_ = stop_after > 0 ? done_ + stop_after : total;
    for (; stage_ < static_cast<int64_t>(steps_.size()); ++stage_, step_ = 0) {
      if (step_ < steps_[stage_]) run_stage();
      if (stopping_ && done_ < total) return Outcome::stopped;
    }
    return Outcome::finished;
  }

 private:
  // Continues the current stage to its end, or until the run is to stop.
  void run_stage() {
    const StageConfig& stage = config_.stages[stage_];
    if (stage_ > 0 && step_ == 0) snapshot_ = open_newest();  // what the stage before has trained
    Parameters parameters(
        model_, *newest_weights(), [&](const std::string& name) { return role_of(name, stage); }, stage.train,
        sharding_, parse_dtype(config_.model.dtype), device_);
    AdamW optimizer(parameters, config_.optimizer);
    if (step_ > 0) optimizer.load(parameters, *snapshot_->moments);
    snapshot_.reset();
    const Loader loader = make_loader(config_, data_.train, stage_, group_.world_size());
    log::info(fmt::format("stage {}: {} steps, {} done, {:.2f} M trained parameters", stage.name, steps_[stage_], step_,
                          static_cast<double>(parameters.count()) / 1e6));
    while (step_ < steps_[stage_] && !stopping_) {
      train_step(stage, loader, parameters, optimizer);
      stopping_ = group_.any(stop_requested()) || done_ == stop_at_;
      if (stopping_ || step_ == steps_[stage_] || done_ % config_.checkpoint.every_steps == 0)
        save(parameters, optimizer);
    }
    progress_.finish();
    if (step_ == steps_[stage_]) evaluate_stage(stage);
  }

  Role role_of(const std::string& name, const StageConfig& stage) const {
    if (stage.train == "all" || is_compensation(name)) return Role::trained;
    return snapshot_ && snapshot_->weights->contains(name) ? Role::carried : Role::frozen;
  }

  void train_step(const StageConfig& stage, const Loader& loader, Parameters& parameters, AdamW& optimizer) {
    const auto start = std::chrono::steady_clock::now();
    const std::vector<Batch> batches = fetch(loader);
    StepMetrics metrics{.stage = stage.name, .step = step_ + 1, .total_steps = steps_[stage_]};
    count_tokens(batches, metrics);
    parameters.begin_step();
    double loss = 0;
    for (size_t i = 0; i < batches.size(); ++i) {
      parameters.begin_micro_batch(/*last=*/i + 1 == batches.size());
      // Each micro-batch is divided by the step's global count, so every split of the step sums to the same gradient.
      const at::Tensor micro_loss =
          model_.token_losses(batches[i]).sum() / static_cast<double>(metrics.supervised_tokens);
      micro_loss.backward();
      parameters.end_micro_batch();
      loss += micro_loss.item<double>();
    }
    const std::vector<double> losses = group_.all_gather(loss);
    metrics.loss = std::accumulate(losses.begin(), losses.end(), 0.0);
    metrics.learning_rate = learning_rate(config_.optimizer.schedule, stage.learning_rate, step_, steps_[stage_],
                                          config_.optimizer.warmup_ratio);
    metrics.gradient_norm = parameters.gradient_norm(group_);
    update(parameters, optimizer, metrics, losses);
    ++step_, ++done_;
    metrics.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (group_.rank() != 0) return;
    append_metrics(run_.metrics(), metrics);
    progress_.show(metrics);
  }

  std::vector<Batch> fetch(const Loader& loader) const {
    const auto rows = loader.rows(step_);
    std::vector<Batch> batches;
    for (int64_t micro = 0; micro < config_.optimizer.accumulation; ++micro) {
      const auto documents =
          micro_batch(rows, micro, config_.optimizer.accumulation, group_.rank(), group_.world_size());
      // Ranks pass through the model together: one without rows takes a document without a loss.
      batches.push_back(to_device(documents.empty() ? make_silent_batch(rows[0][0]) : make_batch(documents), device_));
    }
    return batches;
  }

  void count_tokens(const std::vector<Batch>& batches, StepMetrics& metrics) {
    int64_t tokens = 0, supervised = 0;
    for (const Batch& batch : batches) tokens += batch.tokens.size(0), supervised += batch.supervised;
    metrics.tokens = group_.sum(tokens);
    metrics.supervised_tokens = group_.sum(supervised);
  }

  // Clips and applies the gradients, or leaves the step out when they are not finite; all ranks see the same norm and
  // decide alike.
  void update(Parameters& parameters, AdamW& optimizer, const StepMetrics& metrics, const std::vector<double>& losses) {
    if (!std::isfinite(metrics.gradient_norm)) return skip(metrics, losses);
    skipped_ = 0;
    const double limit = config_.optimizer.clip_norm;
    if (limit > 0 && metrics.gradient_norm > limit) parameters.scale_gradients(limit / metrics.gradient_norm);
    optimizer.step(parameters, metrics.learning_rate);
    parameters.publish();
  }

  // `losses` of the ranks, which tell whose data it was.
  void skip(const StepMetrics& metrics, const std::vector<double>& losses) {
    std::string where;
    for (size_t rank = 0; rank < losses.size(); ++rank)
      if (!std::isfinite(losses[rank])) where += fmt::format(", the loss of rank {} is {}", rank, losses[rank]);
    if (group_.rank() == 0)
      log::warn(fmt::format("stage {} step {}: the gradient is not finite{}; the step is skipped", metrics.stage,
                            metrics.step, where));
    if (++skipped_ == kMaxSkippedSteps)
      fail("{} steps in a row had gradients that are not finite{}; lower the learning rate or look at the data",
           kMaxSkippedSteps, where);
  }

  void evaluate_stage(const StageConfig& stage) {
    if (!data_.eval) return;
    const Evaluation result = evaluate(model_, data_.eval->documents(), group_);
    log::info(fmt::format("stage {} done: held-out loss {:.4f}, perplexity {:.3f}", stage.name, result.loss,
                          result.perplexity()));
  }

  json position() const {
    return {{"stage", stage_},
            {"step", step_},
            {"done", done_},
            {"seed", config_.run.seed},
            {"data", data_.train.hash()},
            {"rows_per_step", config_.optimizer.micro_batch * config_.optimizer.accumulation * group_.world_size()}};
  }

  void save(const Parameters& parameters, const AdamW& optimizer) {
    SnapshotParts parts{position(), {}, optimizer.state(parameters, group_.rank() == 0)};
    for (const Role role : {Role::trained, Role::carried})
      for (const Segment& segment : parameters.segments(role))
        if (segment.kept > 0)
          parts.weights.push_back({.name = segment.name,
                                   .shape = segment.shape,
                                   .begin = segment.begin + segment.kept_begin,
                                   .values = segment.master.narrow(0, segment.kept_begin, segment.kept)});
    write_snapshot(run_.checkpoints(), done_, parts, config_.checkpoint.keep_last, group_);
  }

  std::optional<OpenSnapshot> open_newest() {
    const auto path = newest_snapshot(run_.checkpoints());
    group_.require_equal("newest snapshot", path.value_or("none"));
    if (!path) return std::nullopt;
    log::info(fmt::format("continuing from {}", *path));
    return open_snapshot(*path, group_);
  }

  // Weights as the newest snapshot has them, else as the run starts.
  std::shared_ptr<const TensorSource> newest_weights() const {
    if (!snapshot_) return start_.tensors;
    return std::make_shared<LayeredSource>(
        std::vector<std::shared_ptr<const TensorSource>>{snapshot_->weights, start_.tensors});
  }

  void resume() {
    snapshot_ = open_newest();
    if (!snapshot_) {
      if (group_.rank() == 0) trim_metrics(run_.metrics(), 0);
      return;
    }
    const json expected = position();
    for (const char* key : {"data", "seed", "rows_per_step"})
      if (snapshot_->state.at(key) != expected.at(key))
        fail_usage(
            "the newest snapshot in `{}` was trained with another {}: {} there, {} now; continue with the same, or "
            "start a new run.dir",
            run_.checkpoints(), key, snapshot_->state.at(key).dump(), expected.at(key).dump());
    stage_ = snapshot_->state.at("stage");
    step_ = snapshot_->state.at("step");
    done_ = snapshot_->state.at("done");
    if (group_.rank() == 0) trim_metrics(run_.metrics(), done_);
  }

  const Config& config_;
  const RunDirectory& run_;
  const TrainingData& data_;
  ProcessGroup& group_;
  at::Device device_;
  Sharding sharding_;
  RunState start_;
  Decoder model_;
  std::vector<int64_t> steps_;               // per stage
  int64_t stage_ = 0, step_ = 0, done_ = 0;  // done_ counts over all stages
  int64_t stop_at_ = 0;                      // in terms of done_
  bool stopping_ = false;
  int skipped_ = 0;
  std::optional<OpenSnapshot> snapshot_;  // to continue from, until the stage's parameters exist
  Progress progress_;
};

}  // namespace

std::vector<int64_t> stage_steps(const Config& config, const TokenShards& train, int64_t world_size) {
  std::vector<int64_t> steps;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const StageConfig& stage = config.stages[i];
    const int64_t per_epoch = make_loader(config, train, static_cast<int64_t>(i), world_size).steps_per_epoch();
    steps.push_back(stage.max_steps > 0
                        ? stage.max_steps
                        : static_cast<int64_t>(std::ceil(stage.epochs * static_cast<double>(per_epoch))));
  }
  return steps;
}

Outcome train(const Config& config, const RunDirectory& run, const ModelDirectory& model, const TrainingData& data,
              ProcessGroup& group, int64_t stop_after) {
  return Trainer(config, run, model, data, group).run(stop_after);
}

}  // namespace uniattn
