#include "report/run_record.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "checkpoint/run_directory.h"
#include "config/difference.h"
#include "model/footprint.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// NaN for a missing key and for null, which is how JSON has a number that is not finite.
double number(const json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : kNone;
}

// The objects of a .jsonl file; none without the file. A torn last line is that of a run under way.
std::vector<json> read_lines(const std::string& path) {
  std::ifstream in(path);
  std::vector<json> lines;
  for (std::string text; std::getline(in, text);) {
    json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_object()) lines.push_back(std::move(line));
  }
  return lines;
}

void read_metrics(const std::string& path, RunRecord& record) {
  double seen = 0;
  for (const json& line : read_lines(path)) {
    if (line.contains("held_out_loss"))
      record.held_out.push_back({number(line, "run_step"), seen, number(line, "held_out_loss")});
    if (!line.contains("tokens")) continue;
    seen += number(line, "tokens");
    record.steps.push_back({.run_step = number(line, "run_step"),
                            .tokens_seen = seen,
                            .loss = number(line, "loss"),
                            .distill_loss = number(line, "distill_loss"),
                            .learning_rate = number(line, "learning_rate"),
                            .gradient_norm = number(line, "grad_norm"),
                            .tokens = number(line, "tokens"),
                            .supervised_tokens = number(line, "supervised_tokens"),
                            .seconds = number(line, "seconds"),
                            .mfu = number(line, "mfu"),
                            .mfu_causal = number(line, "mfu_causal"),
                            .peak_memory = number(line, "peak_memory_bytes")});
  }
}

void read_calibration(const std::string& path, RunRecord& record) {
  if (!fs::exists(path)) return;
  for (const json& layer : read_json(path).value("layers", json::array())) {
    const json residual = layer.value("held_out_residual", json::object());
    record.residuals.push_back({number(layer, "layer"), number(residual, "before"), number(residual, "after")});
  }
}

void read_plan(const RunDirectory& run, const Config& config, RunRecord& record) {
  if (!fs::exists(config.model.path + "/config.json")) return;
  const ModelDirectory model = open_model_directory(config.model.path);
  record.plan = plan_of_run(config, model);
  if (has_calibration(run)) record.plan = parse_plan(read_json(run.calibration() + "/plan.json"), model.config);
  record.parameters = static_cast<double>(total_parameters(model.config, *record.plan));
  const SharingPlan base = SharingPlan::all_full(model.config.num_layers);
  record.kv_share = static_cast<double>(total_kv_bytes(model.config, *record.plan, 2)) /
                    static_cast<double>(total_kv_bytes(model.config, base, 2));
}

}  // namespace

std::optional<double> RunRecord::final_held_out_loss() const {
  if (exported_loss) return exported_loss;
  if (!held_out.empty()) return held_out.back().loss;
  return std::nullopt;
}

RunRecord read_run(const std::string& path) {
  const RunDirectory run{path};
  if (!fs::exists(run.config()))
    fail_usage("`{}` has no config.yaml: give a run directory, the `run.dir` of a configuration", path);
  const Config config = load_config(run.config());
  RunRecord record{.path = path, .name = config.run.name};
  for (const ChangedKey& key : changed_keys(Config{}, config))
    if (key.after != kNoValue) record.settings[key.key] = key.after;
  read_metrics(run.metrics(), record);
  read_calibration(run.calibration() + "/report.json", record);
  for (const json& line : read_lines(run.samples()))
    record.samples.push_back({number(line, "run_step"), line.value("prompt", ""), line.value("text", "")});
  read_plan(run, config, record);
  if (fs::exists(run.result())) {
    const json result = read_json(run.result());
    record.outcome = result.value("outcome", record.outcome);
    if (result.contains("loss")) record.exported_loss = number(result, "loss");
  }
  return record;
}

}  // namespace uniattn
