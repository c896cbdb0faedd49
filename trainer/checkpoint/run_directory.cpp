#include "checkpoint/run_directory.h"

#include <filesystem>

#include "checkpoint/snapshot.h"
#include "config/difference.h"
#include "config/plan_config.h"
#include "storage/atomic_file.h"
#include "storage/file_lock.h"
#include "storage/json.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPlan = "/plan.json";
constexpr const char* kWeights = "/weights.safetensors";

// Lines `key: before there, after now` of the changes with this effect.
std::string list_changes(const std::vector<ChangedKey>& changes, ChangedKey::Effect effect) {
  std::string lines;
  for (const ChangedKey& change : changes)
    if (change.effect == effect)
      lines += fmt::format("\n  {}: {} there, {} now", change.key, change.before, change.after);
  return lines;
}

void check_changes(const std::string& path, const std::vector<ChangedKey>& changes, bool accept) {
  const std::string start = list_changes(changes, ChangedKey::Effect::start);
  const std::string training = list_changes(changes, ChangedKey::Effect::training);
  if (!start.empty())
    fail_usage(
        "`{}` is a run of another model, plan or calibration; give this one another run.dir, or remove the old{}", path,
        start);
  if (training.empty()) return;
  if (!accept)
    fail_usage(
        "`{}` is a run with another configuration; give this one another run.dir, or go on with the new configuration "
        "by --accept-changes{}",
        path, training);
  log::warn(fmt::format("`{}` goes on with another configuration{}", path, training));
}

}  // namespace

RunDirectory create_run_directory(const Config& config, bool accept_changes) {
  const RunDirectory run{config.run.dir};
  create_directories(run.path);
  const FileLock lock(run.path + "/.lock");  // ranks start together
  if (fs::exists(run.config())) {
    const std::vector<ChangedKey> changes = changed_keys(load_config(run.config()), config);
    if (changes.empty()) return run;
    check_changes(run.path, changes, accept_changes);
  }
  write_file_atomically(run.config(), to_yaml(config));
  return run;
}

SharingPlan plan_of_run(const Config& config, const ModelDirectory& model) {
  if (!config.plan) return model.plan;
  if (model.plan.shares())
    fail_usage(
        "`{}` is unified already; a plan can only be given for a model whose layers are all full: drop the `plan` "
        "section",
        model.path);
  SharingPlan plan = build_plan(*config.plan, model.config.num_layers);
  plan.validate(model.config.plan_limits());
  return plan;
}

RunState initial_state(const RunDirectory& run, const Config& config, const ModelDirectory& model) {
  std::shared_ptr<const TensorSource> base = open_model_tensors(model.path);
  SharingPlan plan = plan_of_run(config, model);
  if (!has_calibration(run)) return {std::move(plan), std::move(base)};
  plan = parse_plan(read_json(run.calibration() + kPlan), model.config);
  auto calibrated = std::make_shared<SafetensorsFile>(run.calibration() + kWeights);
  return {std::move(plan),
          std::make_shared<LayeredSource>(std::vector<std::shared_ptr<const TensorSource>>{calibrated, base})};
}

RunState newest_state(const RunDirectory& run, const Config& config, const ModelDirectory& model) {
  RunState state = initial_state(run, config, model);
  if (const auto path = newest_snapshot(run.checkpoints())) {
    state.is_trained = true;
    state.tensors = std::make_shared<LayeredSource>(
        std::vector<std::shared_ptr<const TensorSource>>{open_snapshot(*path).weights, state.tensors});
  }
  return state;
}

void write_calibration(const RunDirectory& run, const SharingPlan& plan, const NamedTensors& weights) {
  create_directories(run.calibration());
  write_safetensors(run.calibration() + kWeights, weights);
  write_file_atomically(run.calibration() + kPlan, json{{"uniattn", describe_plan(plan)}}.dump(2) + "\n");
}

bool has_calibration(const RunDirectory& run) {
  return fs::exists(run.calibration() + kPlan);
}

}  // namespace uniattn
