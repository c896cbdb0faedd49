#include "commands/pipeline.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "calibration/report.h"
#include "checkpoint/export.h"
#include "data/data_file.h"
#include "data/manifest.h"
#include "model/footprint.h"
#include "storage/atomic_file.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

// For directories without a tokenizer.
class IdsOnly : public Tokenizer {
 public:
  explicit IdsOnly(const ModelDirectory& model) : path_(model.path), config_(model.config) {}
  std::vector<int32_t> encode(std::string_view) const override { refuse(); }
  std::vector<int32_t> encode_continuation(std::string_view) const override { refuse(); }
  std::string decode(const std::vector<int32_t>&) const override { refuse(); }
  int64_t vocab_size() const override { return config_.vocab_size; }
  int32_t bos_id() const override { return config_.bos_id; }
  int32_t eos_id() const override { return config_.eos_ids.empty() ? -1 : config_.eos_ids.front(); }

 private:
  [[noreturn]] void refuse() const {
    fail("model directory `{}` has no tokenizer.model; only data of format `ids` can be used with it", path_);
  }
  std::string path_;
  ModelConfig config_;
};

bool fits(const CalibrationConfig& calibration, const char* what) {
  return std::find(calibration.fit.begin(), calibration.fit.end(), what) != calibration.fit.end();
}

// The chat template of the conversations among `sources`; none where there are no conversations, or several templates.
std::optional<std::string> trained_template(const std::vector<DataSource>& sources) {
  std::set<std::string> names;
  for (const DataSource& source : sources) {
    if (source.format != "text" && source.format != "ids") names.insert(template_of(source));
  }
  if (names.size() > 1)
    log::warn(fmt::format("the data are written in several chat templates ({}): the export keeps the base's",
                          fmt::join(names, ", ")));
  return names.size() == 1 ? std::optional(*names.begin()) : std::nullopt;
}

void log_counts(const char* name, const TokenShards& shards) {
  const PrepareCounts& c = shards.counts();
  log::info(
      fmt::format("{} data: {} of {} documents kept ({} truncated, {} split; dropped: {} bad, {} filtered, {} "
                  "over-long, {} without labels), {} tokens, {} supervised",
                  name, c.kept, c.read, c.truncated, c.split, c.dropped_bad, c.dropped_filtered, c.dropped_over_long,
                  c.dropped_without_labels, c.tokens, c.supervised));
  for (const SourceEntry& source : shards.sources()) {
    if (source.counts.dropped_bad > 0)
      log::warn(fmt::format("{} of the {} records of {} cannot be read and were dropped; the first: {}",
                            source.counts.dropped_bad, source.counts.read, source.path, source.first_bad));
  }
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_or_ids_only(const ModelDirectory& model) {
  namespace fs = std::filesystem;
  if (!fs::exists(model.path + "/tokenizer.model") && !fs::exists(model.path + "/tokenizer.json"))
    return std::make_unique<IdsOnly>(model);
  auto tokenizer = load_tokenizer(model.path);
  if (tokenizer->vocab_size() > model.config.vocab_size)
    fail("the tokenizer of `{}` has {} pieces, the model only {} embeddings", model.path, tokenizer->vocab_size(),
         model.config.vocab_size);
  return tokenizer;
}

Decoder load_decoder(const ModelDirectory& model, at::ScalarType dtype, at::Device device) {
  const auto tensors = open_model_tensors(model.path);
  check_tensors(*tensors, model.config, model.plan, /*allow_missing_compensation=*/false);
  return Decoder::read(*tensors, model.config, model.plan, dtype, device);
}

Session open_session(const std::string& config_path, const std::vector<std::string>& overrides) {
  Config config = load_config(config_path, overrides);
  if (config.calibration && !config.plan)
    fail_usage("`{}` has no plan to calibrate: search one by `uniattn plan` and name it in `plan.file`", config_path);
  return open_session(std::move(config));
}

Session open_session(Config config) {
  Session session{.config = std::move(config), .model = {}, .plan = {}, .tokenizer = {}};
  session.config.validate();
  session.model = open_model_directory(session.config.model.path);
  session.plan = plan_of_run(session.config, session.model);
  check_tensors(*open_model_tensors(session.model.path), session.model.config, session.plan,
                /*allow_missing_compensation=*/true);
  session.tokenizer = tokenizer_or_ids_only(session.model);
  return session;
}

PreparedData prepare_data(const Session& session, const RunDirectory& run) {
  const Config& config = session.config;
  auto prepare = [&](const char* name, const std::vector<DataSource>& sources,
                     int64_t samples) -> std::optional<TokenShards> {
    if (sources.empty()) return std::nullopt;
    const PrepareOptions options{.max_length = config.data.max_length,
                                 .over_long = config.data.over_long,
                                 .bad_records = config.data.bad_records,
                                 .samples = samples,
                                 .seed = config.run.seed};
    TokenShards shards = prepare_tokens(sources, *session.tokenizer, session.model.path, options, run.data());
    log_counts(name, shards);
    return shards;
  };
  PreparedData data;
  if (config.calibration)
    data.calibration = prepare("calibration", config.calibration->data, config.calibration->samples);
  data.train = prepare("training", config.data.train, 0);
  data.eval = prepare("held-out", config.data.eval, 0);
  return data;
}

CalibrationOptions calibration_options(const CalibrationConfig& asked, const ModelConfig& model) {
  const auto parameters = static_cast<double>(total_parameters(model, SharingPlan::all_full(model.num_layers)));
  return {
      .fit = {.head_map = fits(asked, "head_map"),
              .value = fits(asked, "value"),
              .output = fits(asked, "output"),
              .compensation = fits(asked, "compensation")},
      .ridge = asked.ridge,
      .held_out = asked.held_out,
      .ranks = {.energy = asked.ranks.energy, .parameters = static_cast<int64_t>(asked.ranks.parameters * parameters)}};
}

Outcome calibrate_run(const Session& session, const RunDirectory& run, const PreparedData& data, ProcessGroup& group) {
  if (!session.config.calibration) return Outcome::finished;
  if (has_calibration(run)) {
    log::info(fmt::format("calibration is done: {}", run.calibration()));
    return Outcome::finished;
  }
  const CalibrationOptions options = calibration_options(*session.config.calibration, session.model.config);
  const auto tensors = open_model_tensors(session.model.path);
  const std::string progress = run.calibration() + "/progress";
  const std::optional<CalibrationResult> result =
      calibrate(session.model, *tensors, session.plan, *data.calibration, options, group, progress);
  if (!result) return Outcome::stopped;
  if (group.rank() == 0) {
    create_directories(run.calibration());
    write_file_atomically(run.calibration() + "/report.json", report_json(*result).dump(2) + "\n");
    write_calibration(run, result->plan, result->weights);
    std::filesystem::remove_all(progress);
  }
  group.barrier();
  return Outcome::finished;
}

Outcome train_run(const Session& session, const RunDirectory& run, const PreparedData& data, ProcessGroup& group,
                  const TrainOptions& options) {
  if (session.config.stages.empty()) return Outcome::finished;
  if (session.config.calibration && !has_calibration(run))
    fail_usage(
        "`{}` has not been calibrated yet: run `uniattn calibrate` first, or `uniattn run` for the whole pipeline",
        run.path);
  return train({.config = session.config,
                .directory = run,
                .model = session.model,
                .tokenizer = *session.tokenizer,
                .train = *data.train,
                .eval = data.eval,
                .group = group},
               options);
}

void export_run(const Session& session, const RunDirectory& run, const std::string& out) {
  const RunState state = newest_state(run, session.config, session.model);
  export_model(session.model, state.plan, *state.tensors, out,
               {.dtype = parse_dtype(session.config.exporting.dtype),
                .max_shard_bytes = static_cast<size_t>(session.config.exporting.max_shard_gb * 1e9),
                .chat_template = state.is_trained ? trained_template(session.config.data.train) : std::nullopt});
  log::info(fmt::format("exported to {}", out));
}

}  // namespace uniattn
