#include "commands/plan_report.h"

#include "config/plan_config.h"
#include "model/footprint.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

double kv_share(const ModelConfig& config, const SharingPlan& plan) {
  const SharingPlan full = SharingPlan::all_full(config.num_layers);
  return static_cast<double>(total_kv_bytes(config, plan, 1)) / static_cast<double>(total_kv_bytes(config, full, 1));
}

double parameter_share(const ModelConfig& config, const SharingPlan& plan) {
  const SharingPlan full = SharingPlan::all_full(config.num_layers);
  return static_cast<double>(total_parameters(config, plan)) / static_cast<double>(total_parameters(config, full));
}

ordered_json plan_json(const ModelConfig& config, const PlanSearchResult& result, const MeasuredPlan& plan) {
  ordered_json segments = ordered_json::array();
  for (const size_t c : plan.segments) segments.push_back(result.candidates[c].name());
  return {{"name", plan.name},
          {"segments", segments},
          {"followers", plan.plan.followers()},
          {"kv_fraction", kv_share(config, plan.plan)},
          {"parameter_fraction", parameter_share(config, plan.plan)},
          {"estimated_increase", plan.estimate},
          {"loss", plan.loss}};
}

// One row per layer; a bracket holds a superblock together, whose score stands at its end.
std::string layer_table(const ModelConfig& config, const PlanSearchResult& result) {
  const MeasuredPlan& best = result.plans.front();
  std::vector<const char*> marks(config.num_layers, "─");
  std::vector<std::string> scores(config.num_layers);
  for (const size_t c : best.segments) {
    const PlanCandidate& segment = result.candidates[c];
    scores[segment.end - 1] = fmt::format("{:+.4f}", result.increases[c]);
    if (segment.end - segment.begin == 1) continue;
    for (int64_t i = segment.begin; i < segment.end; ++i) marks[i] = "├";
    marks[segment.begin] = "┌";
    marks[segment.end - 1] = "└";
  }
  std::string text = "layer  mode          leader  loss increase alone\n";
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const LayerPlan& layer = best.plan.layers[i];
    text += fmt::format("{:>5}  {} {:<12}{:>6}{:>21}\n", i, marks[i], to_string(layer.mode),
                        layer.leader < 0 ? "" : std::to_string(layer.leader), scores[i]);
  }
  return text;
}

std::string plans_table(const ModelConfig& config, const PlanSearchResult& result) {
  std::string text = fmt::format("{:<24} {:>9} {:>9} {:>11} {:>19} {:>14}\n", "plan", "followers", "KV cache",
                                 "parameters", "estimated increase", "held-out loss");
  text += fmt::format("{:<24} {:>9} {:>9} {:>11} {:>19} {:>14.4f}\n", "base", 0, "100.0 %", "100.0 %", "",
                      result.base_loss);
  for (const MeasuredPlan& plan : result.plans)
    text += fmt::format("{:<24} {:>9} {:>7.1f} % {:>9.1f} % {:>+19.4f} {:>14.4f}\n", plan.name,
                        plan.plan.followers().size(), 100 * kv_share(config, plan.plan),
                        100 * parameter_share(config, plan.plan), plan.estimate, plan.loss);
  return text;
}

}  // namespace

ordered_json plan_report(const ModelConfig& config, const PlanSearchResult& result) {
  ordered_json candidates = ordered_json::array(), plans = ordered_json::array();
  for (size_t c = 0; c < result.candidates.size(); ++c)
    candidates.push_back({{"segment", result.candidates[c].name()}, {"increase", result.increases[c]}});
  for (const MeasuredPlan& plan : result.plans) plans.push_back(plan_json(config, result, plan));
  return {{"base_loss", result.base_loss}, {"plans", plans}, {"candidates", candidates}};
}

std::string plan_text(const ModelConfig& config, const PlanSearchResult& result) {
  return layer_table(config, result) + "\n" + plans_table(config, result);
}

std::string plan_file(const ModelConfig& config, const PlanSearchResult& result) {
  const MeasuredPlan& best = result.plans.front();
  return fmt::format(
             "# Found by `uniattn plan`: held-out loss {:.4f} after calibration, {:.4f} of the base model; KV cache "
             "{:.1f} %,\n# parameters {:.1f} % of the base's.\n",
             best.loss, result.base_loss, 100 * kv_share(config, best.plan), 100 * parameter_share(config, best.plan)) +
         plan_yaml(best.plan);
}

}  // namespace uniattn
