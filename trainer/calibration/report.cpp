#include "calibration/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace uniattn {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kBarWidth = 24;

ordered_json layer_json(const LayerReport& report, const LayerPlan& plan) {
  ordered_json entry{{"layer", report.layer}, {"mode", to_string(plan.mode)}};
  if (report.leader >= 0) entry["leader"] = report.leader;
  entry.update({{"compensation", to_string(plan.compensation)},
                {"ridge", report.ridge},
                {"value_sweeps", report.value_sweeps},
                {"residual", {{"before", report.before}, {"after", report.after}}},
                {"held_out_residual", {{"before", report.held_out_before}, {"after", report.held_out_after}}},
                {"seconds", report.seconds}});
  return entry;
}

// What is left of it in full, what the fit took away in outline.
std::string bar(double before, double after, double longest) {
  const auto cells = [&](double x) { return static_cast<int>(std::lround(kBarWidth * x / longest)); };
  if (!(longest > 0)) return "";
  std::string text;
  for (int i = 0; i < cells(std::max(before, after)); ++i) text += i < cells(after) ? "█" : "░";
  return text;
}

}  // namespace

ordered_json report_json(const CalibrationResult& result) {
  ordered_json layers = ordered_json::array();
  for (const LayerReport& report : result.layers)
    layers.push_back(layer_json(report, result.plan.layers[report.layer]));
  return {{"fitted_tokens", result.fitted_tokens}, {"held_out_tokens", result.held_out_tokens}, {"layers", layers}};
}

std::string report_text(const json& report) {
  double longest = 0;
  for (const json& layer : report.at("layers"))
    for (const char* when : {"before", "after"})
      longest = std::max(longest, layer.at("held_out_residual").at(when).get<double>());
  std::string text =
      fmt::format("{} tokens fitted, {} held out; missing from the stream after attention, held out\n",
                  report.at("fitted_tokens").get<int64_t>(), report.at("held_out_tokens").get<int64_t>());
  text += fmt::format("{:>5}  {:<11} {:>6}  {:<12} {:>6} {:>8} {:>8}\n", "layer", "mode", "leader", "compensation",
                      "ridge", "before", "after");
  for (const json& layer : report.at("layers")) {
    const double before = layer.at("held_out_residual").at("before"), after = layer.at("held_out_residual").at("after");
    text +=
        fmt::format("{:>5}  {:<11} {:>6}  {:<12} {:>6.0e} {:>8.4f} {:>8.4f}  {}\n", layer.at("layer").get<int64_t>(),
                    layer.at("mode").get<std::string>(), layer.contains("leader") ? layer.at("leader").dump() : "",
                    layer.at("compensation").get<std::string>(), layer.at("ridge").get<double>(), before, after,
                    bar(before, after, longest));
  }
  return text;
}

}  // namespace uniattn
