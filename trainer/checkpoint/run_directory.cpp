#include "checkpoint/run_directory.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "checkpoint/snapshot.h"
#include "config/plan_config.h"
#include "storage/atomic_file.h"
#include "storage/file_lock.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPlan = "/plan.json";
constexpr const char* kWeights = "/weights.safetensors";

// How a step is divided over micro-batches and ranks may change within a run: it is the same step.
void take_split(const Config& from, Config& to) {
  to.parallel = from.parallel;
  to.optimizer.micro_batch = from.optimizer.micro_batch;
  to.optimizer.accumulation = from.optimizer.accumulation;
}

[[noreturn]] void report_difference(const std::string& path, const std::string& found, const std::string& asked) {
  std::istringstream old_lines(found), new_lines(asked);
  std::string old_line, new_line;
  while (true) {
    const bool more_old = static_cast<bool>(std::getline(old_lines, old_line));
    const bool more_new = static_cast<bool>(std::getline(new_lines, new_line));
    if (!more_old) old_line.clear();
    if (!more_new) new_line.clear();
    if (old_line != new_line || (!more_old && !more_new)) break;
  }
  fail_usage(
      "`{}` belongs to a run with another configuration: it has `{}`, now `{}` is asked for; give this run another "
      "run.dir, or remove the old one",
      path, old_line, new_line);
}

}  // namespace

RunDirectory create_run_directory(const Config& config) {
  const RunDirectory run{config.run.dir};
  const std::string yaml = to_yaml(config);
  create_directories(run.path);
  const FileLock lock(run.path + "/.lock");  // ranks start together
  if (fs::exists(run.config())) {
    Config found = load_config(run.config());
    take_split(config, found);
    if (const std::string text = to_yaml(found); text != yaml) report_difference(run.config(), text, yaml);
  }
  write_file_atomically(run.config(), yaml);
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
  if (const auto path = newest_snapshot(run.checkpoints()))
    state.tensors = std::make_shared<LayeredSource>(
        std::vector<std::shared_ptr<const TensorSource>>{open_snapshot(*path).weights, state.tensors});
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
