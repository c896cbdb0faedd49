#include "report/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "report/chart.h"
#include "report/plan_picture.h"
#include "report/style.h"

namespace uniattn {
namespace {

constexpr size_t kCurvePoints = 400;

using Runs = std::vector<RunRecord>;
using Column = std::function<double(const StepRecord&)>;

double sum(const RunRecord& run, const Column& value) {
  double total = 0;
  for (const StepRecord& step : run.steps) total += value(step);
  return total;
}

double median(const RunRecord& run, const Column& value) {
  std::vector<double> values;
  for (const StepRecord& step : run.steps) values.push_back(value(step));
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
}

std::string swatch(size_t run) {
  return fmt::format(R"(<span class="swatch run-{}"></span>)", run % 8);
}

std::string cell(const std::string& text) {
  return fmt::format("<td>{}</td>", text);
}

std::string cell(double value, const char* unit = "") {
  return cell(std::isfinite(value) ? short_number(value) + unit : "–");
}

std::string loss_cell(const RunRecord& run) {
  const std::optional<double> loss = run.final_held_out_loss();
  return cell(loss ? fmt::format("{:.4f}", *loss) : "–");
}

std::string summary_row(const RunRecord& run, size_t index, const RunRecord& first) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const std::optional<double> loss = run.final_held_out_loss(), reference = first.final_held_out_loss();
  const auto followers =
      run.plan ? fmt::format("{} of {}", run.plan->followers().size(), run.plan->layers.size()) : "–";
  const double tokens = sum(run, [](const StepRecord& s) { return s.tokens; });
  const double seconds = sum(run, [](const StepRecord& s) { return s.seconds; });
  double memory = none;
  for (const StepRecord& step : run.steps) memory = std::fmax(memory, step.peak_memory);
  std::string row = fmt::format(R"(<tr><th scope="row">{}{}<small>{}</small></th>)", swatch(index),
                                escape_html(run.name), escape_html(run.path));
  row += cell(run.outcome) + loss_cell(run);
  row += cell(loss && reference && index > 0 ? fmt::format("{:+.4f}", *loss - *reference) : "");
  row += cell(loss ? fmt::format("{:.3f}", std::exp(*loss)) : "–") + cell(followers);
  row += cell(run.plan ? run.kv_share * 100 : none, " %") + cell(run.plan ? run.parameters : none);
  row += cell(static_cast<double>(run.steps.size())) + cell(tokens) + cell(run.steps.empty() ? "–" : duration(seconds));
  row += cell(median(run, [](const StepRecord& s) { return s.tokens / s.seconds; }));
  row += cell(100 * median(run, [](const StepRecord& s) { return s.mfu; }), " %") + cell(memory, "B") + "</tr>";
  return row;
}

std::string summary(const Runs& runs) {
  std::string out =
      "<table class=\"summary\"><thead><tr><th>run</th><th>outcome</th><th>held-out loss</th><th>to the first</th>"
      "<th>perplexity</th><th>layers that follow</th><th>KV cache</th><th>parameters</th><th>steps</th><th>tokens</th>"
      "<th>time in steps</th><th>tokens/s</th><th>MFU</th><th>peak memory</th></tr></thead><tbody>";
  for (size_t i = 0; i < runs.size(); ++i) out += summary_row(runs[i], i, runs.front());
  return out + "</tbody></table>";
}

Chart step_chart(const Runs& runs, const std::string& title, const std::string& unit, const Column& value,
                 bool from_zero = false) {
  Chart chart{.title = title, .x_label = "training tokens", .y_label = unit, .from_zero = from_zero};
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve curve{.name = runs[i].name, .run = static_cast<int>(i)};
    for (const StepRecord& step : runs[i].steps) curve.points.emplace_back(step.tokens_seen, value(step));
    const bool known = std::any_of(curve.points.begin(), curve.points.end(),
                                   [](const auto& point) { return std::isfinite(point.second); });
    curve.points = thin_out(curve.points, kCurvePoints);
    if (known) chart.curves.push_back(std::move(curve));
  }
  return chart;
}

Chart held_out_chart(const Runs& runs) {
  Chart chart{.title = "Held-out loss", .x_label = "training tokens", .y_label = "nats per token"};
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve curve{.name = runs[i].name, .run = static_cast<int>(i)};
    for (const HeldOutRecord& record : runs[i].held_out) curve.points.emplace_back(record.tokens_seen, record.loss);
    if (curve.points.empty() && runs[i].exported_loss) curve.points.emplace_back(0, *runs[i].exported_loss);
    chart.curves.push_back(std::move(curve));
  }
  return chart;
}

Chart residual_chart(const Runs& runs) {
  Chart chart{.title = "Calibration residual, held out",
              .x_label = "layer",
              .y_label = "dashed: before",
              .from_zero = true,
              .whole_x = true};
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve before{.name = runs[i].name + ", before", .run = static_cast<int>(i), .dashed = true};
    Curve after{.name = runs[i].name + ", after", .run = static_cast<int>(i)};
    for (const ResidualRecord& r : runs[i].residuals) {
      before.points.emplace_back(r.layer, r.before);
      after.points.emplace_back(r.layer, r.after);
    }
    chart.curves.push_back(std::move(before));
    chart.curves.push_back(std::move(after));
  }
  return chart;
}

std::string charts(const Runs& runs) {
  const std::string nats = "nats per token";
  std::string out = "<div class=\"charts\">";
  for (const Chart& chart :
       {held_out_chart(runs), step_chart(runs, "Training loss", nats, [](const StepRecord& s) { return s.loss; }),
        step_chart(runs, "Distillation loss", "", [](const StepRecord& s) { return s.distill_loss; }),
        residual_chart(runs),
        step_chart(
            runs, "Throughput", "tokens/s", [](const StepRecord& s) { return s.tokens / s.seconds; }, true),
        step_chart(
            runs, "Model FLOPs utilization", "%", [](const StepRecord& s) { return 100 * s.mfu; }, true),
        step_chart(
            runs, "Peak memory", "GB", [](const StepRecord& s) { return s.peak_memory / 1e9; }, true),
        step_chart(runs, "Gradient norm", "", [](const StepRecord& s) { return s.gradient_norm; }),
        step_chart(
            runs, "Learning rate", "", [](const StepRecord& s) { return s.learning_rate; }, true)})
    if (const std::string svg = to_svg(chart); !svg.empty()) out += "<figure>" + svg + "</figure>";
  return out + "</div>";
}

std::string plans(const Runs& runs) {
  std::string out =
      "<h2>Plans</h2><p class=\"legend\"><span class=\"mode-full\"></span>full <span class=\"mode-share_probs\"></span>"
      "share_probs <span class=\"mode-share_kv\"></span>share_kv <span class=\"mode-linear\"></span>linear "
      "<span class=\"mode-skip\"></span>skip; arcs lead to the layer whose attention is used</p>";
  for (size_t i = 0; i < runs.size(); ++i)
    if (runs[i].plan)
      out += fmt::format("<h3>{}{}</h3>{}", swatch(i), escape_html(runs[i].name), plan_picture(*runs[i].plan));
  return out;
}

// Settings that some run has and others have not come first; those that all share are folded away.
std::string settings(const Runs& runs) {
  std::set<std::string> keys;
  for (const RunRecord& run : runs)
    for (const auto& [key, value] : run.settings) keys.insert(key);
  std::string different, same, head = "<tr><th>key</th>";
  for (size_t i = 0; i < runs.size(); ++i) head += fmt::format("<th>{}{}</th>", swatch(i), escape_html(runs[i].name));
  for (const std::string& key : keys) {
    std::string row = fmt::format("<tr><th scope=\"row\">{}</th>", escape_html(key));
    std::set<std::string> values;
    for (const RunRecord& run : runs) {
      const auto found = run.settings.find(key);
      values.insert(found == run.settings.end() ? "" : found->second);
      row += cell(found == run.settings.end() ? "<span class=\"default\">default</span>" : escape_html(found->second));
    }
    (values.size() > 1 ? different : same) += row + "</tr>";
  }
  const auto table = [&](const std::string& rows) { return "<table>" + head + "</tr>" + rows + "</table>"; };
  std::string out = "<h2>Settings</h2>";
  if (!different.empty()) out += table(different);
  if (!same.empty())
    out += fmt::format("<details{}><summary>Settings that are alike</summary>{}</details>",
                       different.empty() ? " open" : "", table(same));
  return out;
}

std::string samples(const Runs& runs) {
  std::string out;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].samples.empty()) continue;
    out += fmt::format("<details><summary>{}{}</summary><table><tr><th>step</th><th>sample</th></tr>", swatch(i),
                       escape_html(runs[i].name));
    for (const SampleRecord& sample : runs[i].samples)
      out += fmt::format("<tr><th scope=\"row\">{}</th><td class=\"sample\"><b>{}</b>{}</td></tr>", sample.run_step,
                         escape_html(sample.prompt), escape_html(sample.text));
    out += "</table></details>";
  }
  return out.empty() ? "" : "<h2>Samples</h2>" + out;
}

}  // namespace

std::string report_page(const Runs& runs) {
  std::string legend = "<p class=\"legend\">";
  for (size_t i = 0; i < runs.size(); ++i) legend += swatch(i) + escape_html(runs[i].name) + " ";
  const std::string title = runs.size() == 1 ? runs[0].name : fmt::format("{} runs", runs.size());
  return fmt::format(
             "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
             "content=\"width=device-width, initial-scale=1\"><title>uniattn: {0}</title><style>{1}</style></head>"
             "<body><h1>uniattn report: {0}</h1>",
             escape_html(title), kStyle) +
         summary(runs) + legend + "</p>" + charts(runs) + plans(runs) + settings(runs) + samples(runs) +
         "</body></html>\n";
}

}  // namespace uniattn
