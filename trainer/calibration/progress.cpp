#include "calibration/progress.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "checkpoint/retention.h"
#include "checkpoint/snapshot.h"
#include "config/plan_config.h"
#include "storage/atomic_file.h"
#include "support/log.h"

namespace uniattn {
namespace {

using nlohmann::json;

std::string rank_directory(const std::string& directory, const ProcessGroup& group) {
  return directory + "/rank-" + std::to_string(group.rank());
}

// The layer that each rank would continue at, -1 where there is nothing.
std::vector<int64_t> layers_of_ranks(int64_t own, ProcessGroup& group) {
  at::Tensor layers = at::zeros({group.world_size()}, at::kLong);
  layers[group.rank()] = own;
  group.all_reduce_sum(layers);
  return {layers.data_ptr<int64_t>(), layers.data_ptr<int64_t>() + layers.numel()};
}

json to_json(const LayerReport& r) {
  return {r.layer, r.leader,          r.ridge,          r.value_sweeps, r.before,
          r.after, r.held_out_before, r.held_out_after, r.seconds,      r.energies};
}

LayerReport report_from(const json& j) {
  return {j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7], j[8], j[9]};
}

}  // namespace

void save_progress(const std::string& directory, const std::string& fingerprint, const Progress& progress,
                   ProcessGroup& group) {
  json reports = json::array();
  for (const LayerReport& report : progress.result.layers) reports.push_back(to_json(report));
  const std::string own = rank_directory(directory, group);
  create_directories(own);
  // Two are kept: ranks that are killed while they save may be one save apart.
  write_snapshot(own, progress.next_layer,
                 {.state = {{"fingerprint", fingerprint},
                            {"next_layer", progress.next_layer},
                            {"plan", {{"uniattn", describe_plan(progress.result.plan)}}},
                            {"layers", reports}},
                  .weights = progress.result.weights,
                  .moments = progress.states});
  prune_snapshots(own, {.last = 2});
  group.barrier();
}

std::optional<Progress> load_progress(const std::string& directory, const std::string& fingerprint,
                                      const ModelConfig& config, ProcessGroup& group) {
  const std::string own = rank_directory(directory, group);
  const std::optional<std::string> newest = newest_snapshot(own);
  int64_t layer = newest ? std::stoll(newest->substr(newest->rfind('-') + 1)) : -1;
  const std::vector<int64_t> layers = layers_of_ranks(layer, group);
  layer = *std::min_element(layers.begin(), layers.end());
  const std::string path = own + "/step-" + std::to_string(layer);
  if (group.any(layer < 0 || !std::filesystem::exists(path))) return std::nullopt;
  const Snapshot snapshot = read_snapshot(path);
  if (group.any(snapshot.state.at("fingerprint") != fingerprint)) {
    log::info("an unfinished calibration of another model, data or settings is left aside");
    return std::nullopt;
  }
  Progress progress{.next_layer = snapshot.state.at("next_layer"), .result = {}, .states = snapshot.moments};
  progress.result.plan = parse_plan(snapshot.state.at("plan"), config);
  progress.result.weights = snapshot.weights;
  for (const json& report : snapshot.state.at("layers")) progress.result.layers.push_back(report_from(report));
  return progress;
}

}  // namespace uniattn
