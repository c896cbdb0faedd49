// plan: searches a sharing plan under a budget and writes it.
#include "commands/commands.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "commands/plan_report.h"
#include "parallel/launch.h"
#include "storage/atomic_file.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"

namespace uniattn {
namespace {

// What a search works with: it comes before the plan file exists, and needs no training data.
Config search_part(Config config) {
  config.plan.reset();
  config.stages.clear();
  config.data.train.clear();
  config.data.eval.clear();
  return config;
}

void print_outline(const PlanSearchOutline& outline, bool json) {
  print_result(
      json, {{"candidates", outline.candidates}, {"passes", outline.passes}, {"calibrations", outline.calibrations}},
      fmt::format("{} candidate segments; scoring them takes the work of about {:.1f} passes of the base model "
                  "over the calibration tokens;\nthen up to {} plans are calibrated and measured",
                  outline.candidates, outline.passes, outline.calibrations));
}

void write_and_print(const ModelConfig& config, const PlanSearchResult& result, const std::string& folder, bool json) {
  const std::string file = folder + "/plan.yaml";
  nlohmann::ordered_json report = plan_report(config, result);
  write_file_atomically(folder + "/report.json", report.dump(2) + "\n");
  write_file_atomically(file, plan_file(config, result));
  report["outcome"] = "finished";
  report["plan"] = file;
  print_result(json, report, plan_text(config, result) + "\nplan: " + file);
}

void run_plan(const ConfigOptions& options) {
  const Config config = load_config(options.path, options.overrides);
  if (!config.search) fail_usage("`{}` has no `search` section, which gives the budget of the plan", options.path);
  const Session session = open_session(search_part(config));
  if (session.model.plan.shares())
    fail_usage("`{}` is unified already; a plan is searched for a base model: change model.path", session.model.path);
  const RunDirectory run{config.run.dir};
  const PlanSearchOptions search{.search = *config.search,
                                 .calibration = calibration_options(*config.calibration, session.model.config),
                                 .context = config.data.max_length,
                                 .directory = run.plan()};
  const PlanSearchOutline outline = outline_search(session.model.config, search);
  if (options.dry_run) return print_outline(outline, options.json);

  const bool first = Launch::from_environment().rank == 0;
  if (!first) log::only_warnings();
  create_directories(run.plan());
  if (first) log::set_file(run.log());
  const PreparedData data = prepare_data(session, run);
  ProcessGroup group(std::chrono::seconds(config.parallel.timeout_seconds));
  group.require_equal("configuration", to_yaml(config));
  watch_signals();
  ScoreLog scores(run.plan() + "/scores.jsonl", search_fingerprint(session.model, *data.calibration, search), first);
  const PlanSearchResult result =
      search_plan(session.model, *open_model_tensors(session.model.path), *data.calibration, search, scores, group);
  if (!first) return;
  if (result.finished) return write_and_print(session.model.config, result, run.plan(), options.json);
  print_result(options.json, {{"outcome", "stopped"}},
               fmt::format("{}: stopped; the same command continues", run.plan()));
}

}  // namespace

void add_plan(CLI::App& program) {
  auto options = std::make_shared<ConfigOptions>();
  CLI::App* command = program.add_subcommand(
      "plan", "Searches a sharing plan under the budget of `search`, measured on the calibration data, and writes it");
  options->add_to(*command);
  command->footer("Example: uniattn plan configs/quickstart.yaml search.budget.followers=5");
  command->callback([options] { run_plan(*options); });
}

}  // namespace uniattn
