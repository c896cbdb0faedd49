// run, calibrate, train: the commands that work through a configuration.
#include <ATen/Context.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <filesystem>

#include "calibration/report.h"
#include "commands/commands.h"
#include "commands/dry_run.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "parallel/device.h"
#include "parallel/launch.h"
#include "storage/atomic_file.h"
#include "storage/json.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"
#include "train/evaluate.h"
#include "train/parameters.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

// Ranks on several machines must find the same files.
void require_shared(const std::string& directory, ProcessGroup& group) {
  const std::string mark = group.all_gather(fmt::format("{}/.ranks-{}", directory, getpid()))[0];
  if (group.rank() == 0) write_file_atomically(mark, "");
  group.barrier();
  std::vector<int64_t> blind;
  const std::vector<int64_t> sees = group.all_gather(int64_t{std::filesystem::exists(mark)});
  for (int64_t rank = 0; rank < group.world_size(); ++rank)
    if (!sees[rank]) blind.push_back(rank);
  if (group.rank() == 0) std::filesystem::remove(mark);
  if (!blind.empty())
    fail_usage("rank {} does not see what rank 0 writes to `{}`; put run.dir on storage that all machines share",
               fmt::join(blind, ", "), directory);
}

// That all ranks were given the same, before any of them works on it.
void require_equal_inputs(const Session& session, const RunDirectory& run, const PreparedData& data,
                          ProcessGroup& group) {
  if (group.world_size() == 1) return;
  group.require_equal("configuration", to_yaml(session.config));
  group.require_equal("model's config.json", session.model.json.dump());
  for (const auto& [name, shards] : {std::pair("calibration data", &data.calibration),
                                     {"training data", &data.train},
                                     {"held-out data", &data.eval}})
    group.require_equal(name, *shards ? (*shards)->hash() : "");
  require_shared(run.path, group);
}

void check_offload(const Config& config) {
  if (config.parallel.offload != "none" && !at::hasCUDA())
    fail_usage(
        "parallel.offload: {} moves masters and moments from a GPU to the host's memory, and there is no GPU here: "
        "remove it, or imagine one by --dry-run --device",
        config.parallel.offload);
}

// What all three commands do first. Data is ready before the ranks meet, so that no rank waits in a collective for
// another's tokenizing.
struct Started {
  Session session;
  RunDirectory run;
  PreparedData data;
  std::unique_ptr<ProcessGroup> group;
};

Started start(const RunOptions& options) {
  Started started{.session = open_session(options.path, options.overrides), .run = {}, .data = {}, .group = {}};
  check_offload(started.session.config);
  const bool first = Launch::from_environment().rank == 0;
  if (!first) log::only_warnings();
  started.run = create_run_directory(started.session.config, options.accept_changes);
  if (first) log::set_file(started.run.log());
  started.data = prepare_data(started.session, started.run);
  started.group = std::make_unique<ProcessGroup>(std::chrono::seconds(started.session.config.parallel.timeout_seconds));
  require_equal_inputs(started.session, started.run, started.data, *started.group);
  watch_signals();
  return started;
}

const char* to_string(Outcome outcome) {
  return outcome == Outcome::finished ? "finished" : "stopped";
}

// Held-out loss of the exported directory: what a user of it gets. Divided over the ranks as it was in training.
std::optional<Evaluation> evaluate_export(const Started& started) {
  if (!started.data.eval) return std::nullopt;
  const Config& config = started.session.config;
  const ModelDirectory exported = open_model_directory(started.run.exported());
  const auto tensors = open_model_tensors(exported.path);
  check_tensors(*tensors, exported.config, exported.plan, /*allow_missing_compensation=*/false);
  Decoder model;
  model.config = exported.config;
  model.plan = exported.plan;
  const at::Device device = compute_device(started.group->local_rank());
  const Sharding sharding =
      make_sharding(*started.group, parse_shard(config.parallel.shard), config.parallel.replicas, device);
  const auto parameters = frozen_parameters(model, *tensors, sharding, parse_dtype(config.model.dtype), device);
  return evaluate(model, started.data.eval->documents(), *started.group);
}

void run_all(const RunOptions& options) {
  if (options.dry_run) return dry_run(open_session(options.path, options.overrides), options);
  Started s = start(options);
  Outcome outcome = calibrate_run(s.session, s.run, s.data, *s.group);
  if (outcome == Outcome::finished)
    outcome = train_run(s.session, s.run, s.data, *s.group, {.accept_changes = options.accept_changes});
  ordered_json result{{"run", s.run.path}, {"outcome", to_string(outcome)}};
  std::string text = fmt::format("{}: {}", s.run.path, to_string(outcome));
  if (outcome == Outcome::finished) {
    if (s.group->rank() == 0) export_run(s.session, s.run, s.run.exported());
    s.group->barrier();
    result["export"] = s.run.exported();
    text += fmt::format("\nexport: {}", s.run.exported());
    if (const auto evaluation = evaluate_export(s)) {
      result["loss"] = evaluation->loss;
      result["perplexity"] = evaluation->perplexity();
      result["tokens"] = evaluation->tokens;
      text += fmt::format("\nheld-out loss {:.4f}, perplexity {:.3f}, {} tokens", evaluation->loss,
                          evaluation->perplexity(), evaluation->tokens);
    }
  } else {
    text += "; the same command continues";
  }
  if (s.group->rank() != 0) return;
  write_file_atomically(s.run.result(), result.dump(2) + "\n");
  print_result(options.json, result, text);
}

void run_calibrate(const RunOptions& options) {
  if (options.dry_run) return dry_run(open_session(options.path, options.overrides), options);
  Started s = start(options);
  if (!s.session.config.calibration) fail_usage("`{}` has no `calibration` section", options.path);
  const Outcome outcome = calibrate_run(s.session, s.run, s.data, *s.group);
  if (s.group->rank() != 0) return;
  if (outcome == Outcome::finished) {
    const auto report = read_json(s.run.calibration() + "/report.json");
    print_result(options.json, report, fmt::format("{}calibrated: {}", report_text(report), s.run.calibration()));
  } else {
    print_result(options.json, {{"run", s.run.path}, {"outcome", to_string(outcome)}},
                 fmt::format("{}: stopped; the same command continues", s.run.path));
  }
}

void run_train(const RunOptions& options, int64_t stop_after) {
  if (options.dry_run) return dry_run(open_session(options.path, options.overrides), options);
  Started s = start(options);
  if (s.session.config.stages.empty()) fail_usage("`{}` has no `stages`", options.path);
  const Outcome outcome = train_run(s.session, s.run, s.data, *s.group,
                                    {.stop_after = stop_after, .accept_changes = options.accept_changes});
  if (s.group->rank() == 0)
    print_result(options.json, {{"run", s.run.path}, {"outcome", to_string(outcome)}},
                 fmt::format("{}: {}", s.run.path, to_string(outcome)));
}

template <class Options, class Work>
CLI::App* add(CLI::App& program, const char* name, const char* description, const std::shared_ptr<Options>& options,
              Work work) {
  CLI::App* command = program.add_subcommand(name, description);
  options->add_to(*command);
  command->footer(fmt::format("Example: uniattn {} configs/quickstart.yaml run.dir=runs/mine", name));
  command->callback(work);
  return command;
}

}  // namespace

void add_run(CLI::App& program) {
  auto options = std::make_shared<RunOptions>();
  add(program, "run", "The whole pipeline: prepare, calibrate, train, export, eval; continues where it stopped",
      options, [options] { run_all(*options); });
}

void add_calibrate(CLI::App& program) {
  auto options = std::make_shared<RunOptions>();
  add(program, "calibrate", "The init calculation: compensations by least squares on calibration text", options,
      [options] { run_calibrate(*options); });
}

void add_train(CLI::App& program) {
  auto options = std::make_shared<RunOptions>();
  auto stop_after = std::make_shared<int64_t>(0);
  add(program, "train", "The training stages; continues from the newest snapshot", options,
      [options, stop_after] { run_train(*options, *stop_after); })
      ->add_option("--stop-after", *stop_after, "Save and stop after N further steps; the same command continues")
      ->check(CLI::PositiveNumber);
}

}  // namespace uniattn
