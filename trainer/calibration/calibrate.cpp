#include "calibration/calibrate.h"

#include <ATen/core/grad_mode.h>

#include <chrono>

#include "calibration/changed_layer.h"
#include "calibration/fingerprint.h"
#include "calibration/progress.h"
#include "config/plan_config.h"
#include "model/decoder.h"
#include "parallel/device.h"
#include "storage/atomic_file.h"
#include "support/log.h"
#include "support/signals.h"

namespace uniattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::minutes kSaveEvery{5};

bool is_changed(const LayerPlan& plan) {
  return plan != LayerPlan{};
}

int64_t last_changed(const SharingPlan& plan) {
  int64_t last = static_cast<int64_t>(plan.layers.size()) - 1;
  while (last >= 0 && !is_changed(plan.layers[last])) --last;
  return last;
}

class Calibration {
 public:
  Calibration(const ModelDirectory& model, const TensorSource& tensors, const SharingPlan& plan,
              const TokenShards& data, const CalibrationOptions& options, ProcessGroup& group,
              const std::string& directory, bool survey)
      : config_(model.config),
        base_plan_(SharingPlan::all_full(model.config.num_layers)),
        tensors_(tensors),
        group_(group),
        setting_{config_, options, group, compute_device(group.local_rank()), survey},
        directory_(directory),
        fingerprint_(calibration_fingerprint(model, data, options) + " " + describe_plan(plan).dump() + " " +
                     std::to_string(group.world_size())),
        streams_(config_, tensors, data, options.held_out, directory, group, setting_.device) {
    result_.plan = plan;
  }

  std::optional<CalibrationResult> run() {
    const at::NoGradGuard no_grad;
    const int64_t end = last_changed(result_.plan) + 1;
    int64_t next = continue_from(end);
    for (Clock::time_point saved = Clock::now(); next < end; ++next) {
      const bool stop = group_.any(stop_requested());
      if (!directory_.empty() && next > 0 && (stop || group_.any(Clock::now() - saved > kSaveEvery))) {
        save_progress(directory_, fingerprint_, {next, result_, streams_.save()}, group_);
        saved = Clock::now();
      }
      if (stop) return std::nullopt;
      advance(next);
      if (setting_.survey && !directory_.empty() && next + 1 == end)  // what follows need not do it again
        save_progress(directory_, fingerprint_, {end, result_, {}}, group_);
    }
    result_.fitted_tokens = group_.sum(streams_.tokens(false));
    result_.held_out_tokens = group_.sum(streams_.tokens(true));
    return std::move(result_);
  }

 private:
  int64_t continue_from(int64_t end) {
    if (directory_.empty()) return 0;
    std::optional<Progress> progress = load_progress(directory_, fingerprint_, config_, group_);
    if (!progress) return 0;
    if (progress->next_layer < end) {
      log::info(fmt::format("continuing the calibration at layer {}", progress->next_layer));
      streams_.load(progress->states);
    }
    result_ = std::move(progress->result);
    return progress->next_layer;
  }

  void advance(int64_t index) {
    const LayerPlan& plan = result_.plan.layers[index];
    const Layer base = read_layer(tensors_, config_, LayerPlan{}, index, at::kFloat, setting_.device);
    if (!is_changed(plan)) return advance_together(index, base);
    const Clock::time_point start = Clock::now();
    ChangedLayer layer(setting_, result_.plan, index, base,
                       plan.num_kv_heads > 0 ? read_layer(tensors_, config_, plan, index, at::kFloat, setting_.device)
                                             : kept_weights(config_, plan, index, base),
                       streams_);
    LayerReport report = layer.fit(result_.weights);
    if (index != last_changed(result_.plan)) layer.advance();
    report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    announce(report);
    result_.layers.push_back(std::move(report));
  }

  // A layer that is the same in both models.
  void advance_together(int64_t index, const Layer& layer) {
    for (Chunk& chunk : streams_.chunks()) {
      const bool one_stream = chunk.unified.is_same(chunk.base);
      if (!one_stream) {
        Leaders none;
        chunk.base =
            streams_.keep(uniattn::advance(config_, base_plan_, index, layer, chunk.base, chunk.sequences, none));
      }
      chunk.unified = streams_.keep(
          uniattn::advance(config_, result_.plan, index, layer, chunk.unified, chunk.sequences, chunk.leaders));
      if (one_stream) chunk.base = chunk.unified;
      if (const auto found = chunk.leaders.find(index); found != chunk.leaders.end()) streams_.keep(found->second);
    }
  }

  static void announce(const LayerReport& r) {
    const std::string leader = r.leader < 0 ? "" : fmt::format(" follows {:>2}", r.leader);
    log::info(fmt::format("layer {:>2}{}: ridge {:.0e}, missing from the stream (held out) {:.4f} -> {:.4f}, {:.1f} s",
                          r.layer, leader, r.ridge, r.held_out_before, r.held_out_after, r.seconds));
  }

  const ModelConfig& config_;
  SharingPlan base_plan_;
  const TensorSource& tensors_;
  ProcessGroup& group_;
  CalibrationSetting setting_;
  std::string directory_;
  std::string fingerprint_;
  Streams streams_;
  CalibrationResult result_;
};

// `plan` with ranks for its full compensations; empty when a signal asked to stop.
std::optional<SharingPlan> plan_with_ranks(const ModelDirectory& model, const TensorSource& tensors,
                                           const SharingPlan& plan, const TokenShards& data,
                                           const CalibrationOptions& options, ProcessGroup& group,
                                           const std::string& directory) {
  log::info("full compensations are fitted first, to choose ranks by what their directions explain");
  CalibrationOptions survey = options;
  survey.fit = {.head_map = false, .value = false, .output = false, .compensation = true};
  const std::optional<CalibrationResult> result =
      Calibration(model, tensors, plan, data, survey, group, directory, /*survey=*/true).run();
  if (!result) return std::nullopt;
  std::vector<Spectrum> spectra;
  for (const LayerReport& report : result->layers) {
    if (plan.layers[report.layer].compensation.kind != Compensation::Kind::full) continue;
    // No energies: a compensation does not help here.
    spectra.push_back(
        {report.layer, report.energies.empty() ? std::vector<double>(model.config.hidden_size) : report.energies});
  }
  SharingPlan chosen = choose_ranks(plan, spectra, options.ranks);
  for (const Spectrum& spectrum : spectra)
    log::info(fmt::format("layer {:>2}: compensation {}", spectrum.layer,
                          to_string(chosen.layers[spectrum.layer].compensation)));
  return chosen;
}

}  // namespace

std::optional<CalibrationResult> calibrate(const ModelDirectory& model, const TensorSource& tensors,
                                           const SharingPlan& plan, const TokenShards& data,
                                           const CalibrationOptions& options, ProcessGroup& group,
                                           const std::string& directory) {
  if (!plan.shares()) return CalibrationResult{.plan = plan, .weights = {}, .layers = {}};
  SharingPlan chosen = plan;
  if (options.ranks.chooses()) {
    const std::string survey = directory.empty() ? "" : directory + "/survey";
    if (!survey.empty()) create_directories(survey);
    std::optional<SharingPlan> with_ranks = plan_with_ranks(model, tensors, plan, data, options, group, survey);
    if (!with_ranks) return std::nullopt;
    chosen = std::move(*with_ranks);
  }
  if (!directory.empty()) create_directories(directory);
  return Calibration(model, tensors, chosen, data, options, group, directory, /*survey=*/false).run();
}

}  // namespace uniattn
