#include "train/trainer.h"

#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <utility>

#include "checkpoint/retention.h"
#include "checkpoint/snapshot.h"
#include "inference/engine.h"
#include "parallel/device.h"
#include "parallel/sharding.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"
#include "train/device_probe.h"
#include "train/evaluate.h"
#include "train/monitor.h"
#include "train/stage.h"

namespace uniattn {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxSkippedSteps = 10;  // in a row, for gradients that are not finite

class Trainer {
 public:
  Trainer(const TrainingRun& run, const TrainOptions& options)
      : run_(run),
        config_(run.config),
        device_(compute_device(run.group.local_rank())),
        sharding_(make_sharding(run.group, parse_shard(config_.parallel.shard), config_.parallel.replicas, device_)),
        start_(initial_state(run.directory, config_, run.model)),
        model_{.config = run.model.config,
               .plan = start_.plan,
               .embedding = {},
               .final_norm = {},
               .head = {},
               .layers = {}},
        steps_(stage_steps(config_, run.train, run.rows_per_step())) {
    sharding_.offload = config_.parallel.offload == "optimizer";
    model_.checkpoint_activations = config_.optimizer.activation_checkpointing;
    snapshot_ = open_newest();
    if (snapshot_) resume(options.accept_changes);
    if (options.stop_after > 0) stop_at_ = done_ + options.stop_after;
  }

  Outcome run() {
    if (is_complete()) return Outcome::finished;
    if (is_first()) monitor_.emplace(run_.directory, ToldSteps{done_, held_out_loss_.has_value()});
    const auto given = config_.run.peak_tflops;
    peak_flops_ = given ? *given * 1e12 : measure_matmul_flops(device_, dtype());
    for (; stage_ < static_cast<int64_t>(steps_.size()); ++stage_, step_ = 0) {
      run_stage();
      const bool last = stage_ + 1 == static_cast<int64_t>(steps_.size());
      if (stopping_ && !(last && step_ == steps_[stage_])) return Outcome::stopped;
    }
    return Outcome::finished;
  }

 private:
  bool is_first() const { return run_.group.rank() == 0; }
  bool is_complete() const {
    const bool at_end = stage_ + 1 == static_cast<int64_t>(steps_.size()) && step_ == steps_[stage_];
    return at_end && !evaluation_is_due();
  }
  RunStep here() const { return {config_.stages[stage_].name, step_, steps_[stage_], done_}; }

  at::ScalarType dtype() const { return parse_dtype(config_.model.dtype); }

  // Continues the current stage to its end, or until the run is to stop.
  void run_stage() {
    if (step_ == steps_[stage_] && !evaluation_is_due()) return;
    Decoder teacher;
    const std::unique_ptr<Parameters> teacher_parameters = read_teacher(teacher);
    if (!snapshot_) snapshot_ = open_newest();  // what the stage before has trained
    Stage stage(run_, stage_, steps_[stage_], model_, teacher_parameters ? &teacher : nullptr, *newest_weights(),
                snapshot_ ? snapshot_->weights.get() : nullptr, sharding_, device_, peak_flops_);
    if (step_ > 0 && step_ < steps_[stage_]) stage.load_moments(*snapshot_->moments);
    snapshot_.reset();
    if (evaluation_is_due()) measure_held_out_loss();  // of where training starts, or left out for a stop
    if (step_ == steps_[stage_]) return;
    log::info(fmt::format("stage {}: {} steps, {} done, {:.3f} M trained parameters", config_.stages[stage_].name,
                          steps_[stage_], step_, static_cast<double>(stage.trained_parameters()) / 1e6));
    while (step_ < steps_[stage_] && !stopping_) {
      train_step(stage);
      stopping_ = run_.group.any(stop_requested()) || done_ == stop_at_;
      if (!stopping_ && evaluation_is_due()) measure_held_out_loss();
      if (!stopping_ && samples_are_due()) write_samples();
      if (save_is_due()) save(stage);
    }
  }

  // The base model, frozen, where the stage distills.
  std::unique_ptr<Parameters> read_teacher(Decoder& teacher) const {
    if (!config_.stages[stage_].distill) return nullptr;
    teacher.config = run_.model.config;
    teacher.plan = run_.model.plan;
    return frozen_parameters(teacher, *open_model_tensors(run_.model.path), sharding_, dtype(), device_);
  }

  void train_step(Stage& stage) {
    StepMetrics metrics = stage.step(step_);
    ++step_, ++done_;
    metrics.at.run_step = done_;
    held_out_loss_.reset();
    if (monitor_) monitor_->step(metrics);
    skipped_ = metrics.updated ? 0 : skipped_ + 1;
    if (metrics.updated) return;
    // The ranks that fail tell whose data it was.
    const std::string where = metrics.failed_ranks.empty()
                                  ? ""
                                  : fmt::format(" (nor is the loss of rank {})", fmt::join(metrics.failed_ranks, ", "));
    if (monitor_)
      monitor_->say(fmt::format("stage {} step {}: the gradient is not finite{}, the step is skipped", metrics.at.stage,
                                metrics.at.step, where));
    if (skipped_ == kMaxSkippedSteps)
      fail("{} steps in a row had gradients that are not finite{}; lower the learning rate or look at the data",
           kMaxSkippedSteps, where);
  }

  bool evaluation_is_due() const {
    if (!run_.eval || held_out_loss_) return false;
    const int64_t every = config_.evaluation.every_steps;
    return step_ == steps_[stage_] || (every > 0 && step_ % every == 0 && (step_ > 0 || done_ == 0));
  }

  bool samples_are_due() const {
    if (!monitor_ || config_.samples.prompts.empty()) return false;
    return step_ == steps_[stage_] || step_ % config_.samples.every_steps == 0;
  }

  void measure_held_out_loss() {
    const Evaluation result = evaluate(model_, run_.eval->documents(), run_.group);
    held_out_loss_ = result.loss;
    if (monitor_) monitor_->held_out(here(), result);
  }

  void write_samples() {
    const Tokenizer& tokenizer = run_.tokenizer;
    const std::vector<std::string>& prompts = config_.samples.prompts;
    std::vector<std::vector<int32_t>> answers(prompts.size());
    const auto& ends = model_.config.eos_ids;
    std::vector<GenerationRequest> requests;
    for (size_t i = 0; i < prompts.size(); ++i) {
      GenerationRequest request{.max_new_tokens = config_.samples.max_new_tokens,
                                .stop_ids = {ends.begin(), ends.end()}};
      if (tokenizer.bos_id() >= 0) request.prompt.push_back(tokenizer.bos_id());
      for (const int32_t id : tokenizer.encode(prompts[i])) request.prompt.push_back(id);
      request.on_token = [&answer = answers[i]](int64_t token) {
        answer.push_back(static_cast<int32_t>(token));
        return true;
      };
      requests.push_back(std::move(request));
    }
    Engine engine(model_);
    run_to_end(engine, std::move(requests));
    for (size_t i = 0; i < prompts.size(); ++i) monitor_->sample(here(), prompts[i], tokenizer.decode(answers[i]));
  }

  bool save_is_due() {
    const CheckpointConfig& when = config_.checkpoint;
    if (stopping_ || step_ == steps_[stage_] || (when.every_steps > 0 && done_ % when.every_steps == 0)) return true;
    const std::chrono::duration<double, std::ratio<60>> since = Clock::now() - last_save_;
    return when.every_minutes > 0 && run_.group.any(is_first() && since.count() >= when.every_minutes);
  }

  void save(Stage& stage) {
    // Whoever asked to stop does not wait for an evaluation: this snapshot is not compared with others.
    if (config_.checkpoint.keep_best > 0 && !held_out_loss_ && !stopping_) measure_held_out_loss();
    write_snapshot(run_.directory.checkpoints(), done_, {position(), stage.weights(), stage.moments()}, run_.group);
    if (is_first())
      prune_snapshots(run_.directory.checkpoints(), {config_.checkpoint.keep_last, config_.checkpoint.keep_best});
    last_save_ = Clock::now();
  }

  json position() const {
    json position{{"stage", stage_},
                  {"step", step_},
                  {"stage_steps", steps_[stage_]},
                  {"done", done_},
                  {"skipped", skipped_},
                  {"seed", config_.run.seed},
                  {"data", run_.train.hash()},
                  {"rows_per_step", run_.rows_per_step()}};
    if (held_out_loss_) position["held_out_loss"] = *held_out_loss_;
    return position;
  }

  std::optional<OpenSnapshot> open_newest() const {
    const auto path = newest_snapshot(run_.directory.checkpoints());
    run_.group.require_equal("newest snapshot", path.value_or("none"));
    if (!path) return std::nullopt;
    return open_snapshot(*path, run_.group);
  }

  // Weights as the newest snapshot has them, else as the run starts.
  std::shared_ptr<const TensorSource> newest_weights() const {
    if (!snapshot_) return start_.tensors;
    return std::make_shared<LayeredSource>(
        std::vector<std::shared_ptr<const TensorSource>>{snapshot_->weights, start_.tensors});
  }

  void resume(bool accept_changes) {
    const json& state = snapshot_->state;
    const std::string path = *newest_snapshot(run_.directory.checkpoints());
    check_same(path, state, accept_changes);
    stage_ = state.at("stage");
    if (stage_ >= static_cast<int64_t>(steps_.size()))
      fail_usage("snapshot `{}` is of stage {}, and the configuration has {}; start a new run.dir", path, stage_,
                 steps_.size());
    step_ = state.at("step");
    if (const int64_t steps_then = state.at("stage_steps"); steps_then != steps_[stage_])
      step_ = step_in_changed_stage(steps_then);
    done_ = state.at("done");
    skipped_ = state.at("skipped");
    if (state.contains("held_out_loss")) held_out_loss_ = state.at("held_out_loss").get<double>();
    log::info(fmt::format("continuing from {}", path));
  }

  // What decides which rows a step has. The split of a step's rows does not.
  void check_same(const std::string& path, const json& then, bool accept_changes) const {
    const json now = position();
    std::string changes;
    for (const auto& [key, name] :
         {std::pair{"data", "training data (its files, or data.* that prepares them)"},
          {"seed", "run.seed"},
          {"rows_per_step", "rows of a step (optimizer.micro_batch x optimizer.accumulation x ranks)"}})
      if (then.at(key) != now.at(key))
        changes += fmt::format("\n  {}: {} there, {} now", name, then.at(key).dump(), now.at(key).dump());
    if (changes.empty()) return;
    if (!accept_changes)
      fail_usage(
          "snapshot `{}` was trained with another{}\ncontinue with the same, start a new run.dir, or accept the change "
          "by --accept-changes",
          path, changes);
    log::warn(fmt::format("continuing snapshot `{}` in spite of another{}", path, changes));
  }

  // Of a stage given in epochs the same share is done, whatever a step holds now; of one given in steps as many steps.
  int64_t step_in_changed_stage(int64_t steps_then) const {
    const int64_t steps = steps_[stage_];
    return config_.stages[stage_].max_steps > 0 ? std::min(step_, steps) : step_ * steps / steps_then;
  }

  const TrainingRun& run_;
  const Config& config_;
  at::Device device_;
  Sharding sharding_;
  RunState start_;
  Decoder model_;
  std::vector<int64_t> steps_;               // per stage
  int64_t stage_ = 0, step_ = 0, done_ = 0;  // done_ counts over all stages
  int64_t stop_at_ = -1;                     // in terms of done_; -1: nowhere
  bool stopping_ = false;
  int64_t skipped_ = 0;                   // steps in a row
  std::optional<double> held_out_loss_;   // at this step, once measured
  std::optional<OpenSnapshot> snapshot_;  // to continue from, until the stage has read it
  std::optional<Monitor> monitor_;        // on rank 0
  double peak_flops_ = 0;
  Clock::time_point last_save_ = Clock::now();
};

}  // namespace

std::vector<int64_t> stage_steps(const Config& config, const TokenShards& train, int64_t rows_per_step) {
  std::vector<int64_t> steps;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const StageConfig& stage = config.stages[i];
    const int64_t per_epoch = make_loader(config, train, static_cast<int64_t>(i), rows_per_step).steps_per_epoch();
    steps.push_back(stage.max_steps > 0
                        ? stage.max_steps
                        : static_cast<int64_t>(std::ceil(stage.epochs * static_cast<double>(per_epoch))));
  }
  return steps;
}

Outcome train(const TrainingRun& run, const TrainOptions& options) {
  return Trainer(run, options).run();
}

}  // namespace uniattn
