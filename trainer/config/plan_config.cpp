#include "config/plan_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "config/invalid.h"
#include "config/reader.h"

namespace uniattn {
namespace {

struct PlanFile {
  std::vector<LayerPlanConfig> layers;
  template <class V>
  void visit(V& v) {
    v("layers", layers);
  }
};

SharingPlan from_layers(const std::vector<LayerPlanConfig>& layers, int64_t num_layers, const std::string& key) {
  SharingPlan plan = SharingPlan::all_full(num_layers);
  std::set<int64_t> seen;
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string where = fmt::format("{}.{}", key, i);
    layers[i].validate(where);
    const int64_t layer = layers[i].layer;
    if (layer >= num_layers) invalid(where + ".layer", "is {}; the model's layers are 0 to {}", layer, num_layers - 1);
    if (!seen.insert(layer).second) invalid(where + ".layer", "layer {} is listed twice; remove one entry", layer);
    plan.layers[layer] = {.mode = parse_mode(layers[i].mode),
                          .leader = layers[i].leader,
                          .compensation = compensation_of(layers[i].compensation),
                          .head_map = layers[i].head_map,
                          .num_kv_heads = layers[i].num_kv_heads,
                          .leader_mask = layers[i].mask == "leader"};
  }
  return plan;
}

SharingPlan from_short_form(const PlanConfig& config, int64_t num_layers) {
  SharingPlan plan = SharingPlan::regular(num_layers, parse_mode(config.mode), config.group, config.begin, config.end,
                                          compensation_of(config.compensation));
  for (int64_t i = config.begin; i < std::min(config.end, num_layers); ++i) {
    LayerPlan& layer = plan.layers[i];
    if (layer.mode == Mode::full) layer.num_kv_heads = config.num_kv_heads;
    layer.leader_mask = layer.leader >= 0 && config.mask == "leader";
  }
  return plan;
}

SharingPlan from_file(const std::string& path, int64_t num_layers) {
  const YamlDocument document(path, {});
  const PlanFile file = read_document<PlanFile>(document);
  try {
    return from_layers(file.layers, num_layers, "layers");
  } catch (const InvalidKey& error) {
    document.fail_at(error.key, error.reason);
  }
}

std::string layer_yaml(const LayerPlan& plan, int64_t index) {
  std::string entry = fmt::format("layer: {}, mode: {}", index, to_string(plan.mode));
  if (plan.leader >= 0) entry += fmt::format(", leader: {}", plan.leader);
  if (plan.compensation.kind == Compensation::Kind::full) entry += ", compensation: full";
  if (plan.compensation.kind == Compensation::Kind::low_rank)
    entry += fmt::format(", compensation: {{rank: {}}}", plan.compensation.rank);
  if (!plan.head_map.empty()) entry += fmt::format(", head_map: [{}]", fmt::join(plan.head_map, ", "));
  if (plan.num_kv_heads > 0) entry += fmt::format(", num_kv_heads: {}", plan.num_kv_heads);
  if (plan.leader_mask) entry += ", mask: leader";
  return "  - {" + entry + "}\n";
}

}  // namespace

Compensation compensation_of(const CompensationConfig& config) {
  if (config.kind == "low_rank") return {.kind = Compensation::Kind::low_rank, .rank = config.rank};
  return {.kind = config.kind == "full" ? Compensation::Kind::full : Compensation::Kind::none};
}

std::string plan_yaml(const SharingPlan& plan) {
  std::string yaml = "layers:\n";
  for (size_t i = 0; i < plan.layers.size(); ++i)
    if (plan.layers[i] != LayerPlan{}) yaml += layer_yaml(plan.layers[i], static_cast<int64_t>(i));
  return yaml;
}

SharingPlan build_plan(const PlanConfig& config, int64_t num_layers) {
  if (!config.file.empty()) return from_file(config.file, num_layers);
  if (!config.layers.empty()) return from_layers(config.layers, num_layers, "plan.layers");
  return from_short_form(config, num_layers);
}

}  // namespace uniattn
