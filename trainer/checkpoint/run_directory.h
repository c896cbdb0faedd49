// The folder of a run and what stands in it (docs/configuration.md, "run").
#pragma once
#include <memory>
#include <string>

#include "checkpoint/model_directory.h"
#include "config/config.h"

namespace uniattn {

struct RunDirectory {
  std::string path;
  std::string config() const { return path + "/config.yaml"; }
  std::string metrics() const { return path + "/metrics.jsonl"; }
  std::string samples() const { return path + "/samples.jsonl"; }
  std::string result() const { return path + "/result.json"; }
  std::string log() const { return path + "/log.txt"; }
  std::string data() const { return path + "/data"; }
  std::string calibration() const { return path + "/calibration"; }
  std::string plan() const { return path + "/plan"; }
  std::string checkpoints() const { return path + "/checkpoints"; }
  std::string exported() const { return path + "/export"; }
};

// Creates the folder and its config.yaml. In a folder that has one already, keys that leave the weights as they would
// have been may have changed: config.yaml follows. Any other change is refused by a UsageError that names every key;
// with `accept_changes` those of data and training are warned of instead.
RunDirectory create_run_directory(const Config& config, bool accept_changes);

// The plan that the configuration asks for, checked against the model. Throws UsageError when it does not fit, or when
// an already unified model is given a plan.
SharingPlan plan_of_run(const Config& config, const ModelDirectory& model);

// Newest weights of the run: the newest snapshot over the calibration's over the base model's.
struct RunState {
  SharingPlan plan;  // of the calibration when there is one: it knows head maps and ranks
  std::shared_ptr<const TensorSource> tensors;
  bool is_trained = false;
};
RunState newest_state(const RunDirectory& run, const Config& config, const ModelDirectory& model);

// As newest_state, but before any training: where training starts from.
RunState initial_state(const RunDirectory& run, const Config& config, const ModelDirectory& model);

// The calibration's result: calibration/plan.json and calibration/weights.safetensors, written last and together make
// it complete.
void write_calibration(const RunDirectory& run, const SharingPlan& plan, const NamedTensors& weights);
bool has_calibration(const RunDirectory& run);

}  // namespace uniattn
