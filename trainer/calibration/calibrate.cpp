#include "calibration/calibrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>

#include "calibration/base_attention.h"
#include "calibration/fingerprint.h"
#include "calibration/progress.h"
#include "calibration/streams.h"
#include "config/plan_config.h"
#include "model/decoder.h"
#include "parallel/device.h"
#include "storage/atomic_file.h"
#include "support/error.h"
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

// Squared distance of the unified stream from the base's after attention, relative to the latter's squared norm: on
// fitted and on held-out tokens.
class StreamError {
 public:
  void add(const Chunk& chunk, const BaseAttention& base, const at::Tensor& unified) {
    const at::Tensor row = sums_[chunk.held_out];
    row[0] += (base.stream - unified).square().sum(at::kDouble).cpu();
    row[1] += base.stream.square().sum(at::kDouble).cpu();
  }

  void all_reduce(ProcessGroup& group) { group.all_reduce_sum(sums_); }

  std::pair<double, double> relative() const {
    const at::Tensor relative = sums_.select(1, 0) / sums_.select(1, 1);
    return {relative[0].item<double>(), relative[1].item<double>()};
  }

  double fitted_norm() const { return sums_[0][1].item<double>(); }  // squared, of the base's stream

 private:
  at::Tensor sums_ = at::zeros({2, 2}, at::kDouble);
};

class Calibration {
 public:
  Calibration(const ModelDirectory& model, const TensorSource& tensors, const SharingPlan& plan,
              const TokenShards& data, const CalibrationOptions& options, ProcessGroup& group,
              const std::string& directory, bool survey)
      : config_(model.config),
        base_plan_(SharingPlan::all_full(model.config.num_layers)),
        tensors_(tensors),
        options_(options),
        group_(group),
        device_(compute_device(group.local_rank())),
        directory_(directory),
        survey_(survey),
        fingerprint_(calibration_fingerprint(model, data, options) + " " + describe_plan(plan).dump() + " " +
                     std::to_string(group.world_size())),
        streams_(config_, tensors, data, options.held_out, directory, group, device_) {
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
      if (survey_ && !directory_.empty() && next + 1 == end)  // what follows need not do it again
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

  const LayerPlan& layer_plan() const { return result_.plan.layers[layer_]; }

  void advance(int64_t index) {
    layer_ = index;
    const Layer base = read_layer(tensors_, config_, LayerPlan{}, index, at::kFloat, device_);
    if (!is_changed(layer_plan())) return advance_together(base);
    advance_changed(base, layer_plan().num_kv_heads > 0
                              ? read_layer(tensors_, config_, layer_plan(), index, at::kFloat, device_)
                              : kept_weights(config_, layer_plan(), index, base));
  }

  // A layer that is the same in both models.
  void advance_together(const Layer& layer) {
    for (Chunk& chunk : streams_.chunks()) {
      const bool one_stream = chunk.unified.is_same(chunk.base);
      const at::Tensor x = norm(config_, chunk.unified, layer.input_norm);
      const at::Tensor heads = attention_heads(config_, result_.plan, layer_, layer, x, chunk.sequences, chunk.leaders);
      keep_leader(chunk);
      const at::Tensor unified = chunk.unified + attention_output(config_, layer, heads, x);
      if (!one_stream) chunk.base = streams_.keep(add_mlp(config_, layer, base_attention_of(layer, chunk).stream));
      chunk.unified = streams_.keep(add_mlp(config_, layer, unified));
      if (one_stream) chunk.base = chunk.unified;
    }
  }

  void keep_leader(Chunk& chunk) const {
    if (const auto found = chunk.leaders.find(layer_); found != chunk.leaders.end()) streams_.keep(found->second);
  }

  BaseAttention base_attention_of(const Layer& layer, const Chunk& chunk) const {
    return base_attention(config_, base_plan_, layer_, layer, chunk.base, chunk.sequences);
  }

  // Rows of the changed layer that is under way; base_after_ holds the base's streams after its attention.
  FitRows rows_of(const Layer& layer, size_t i) {
    Chunk& chunk = streams_.chunks()[i];
    FitRows rows;
    rows.held_out = chunk.held_out;
    rows.x = norm(config_, chunk.unified, layer.input_norm);
    rows.target = base_after_[i].stream - chunk.unified;
    if (config_.post_norms) rows.scale = base_after_[i].rms.reciprocal();
    if (layer_plan().mode == Mode::share_probs) {
      rows.probs = &chunk.leaders.at(layer_plan().leader).probs.back();
    } else if (layer.o.defined()) {
      Leaders leaders = chunk.leaders;  // a follower takes from its leader: from a copy here
      rows.heads = attention_heads(config_, result_.plan, layer_, layer, rows.x, chunk.sequences, leaders).flatten(1);
    }
    return rows;
  }

  void advance_changed(const Layer& base, Layer layer) {
    const Clock::time_point start = Clock::now();
    for (const Chunk& chunk : streams_.chunks()) {
      base_after_.push_back(base_attention_of(base, chunk));
      base_after_.back().stream = streams_.keep(base_after_.back().stream);
    }
    LayerReport report{.layer = layer_, .leader = layer_plan().leader};
    StreamError before, after;
    for (size_t i = 0; i < base_after_.size(); ++i)
      before.add(streams_.chunks()[i], base_after_[i], unified_attention(layer, i));
    fit(layer, report);
    for (size_t i = 0; i < base_after_.size(); ++i) {
      Chunk& chunk = streams_.chunks()[i];
      const at::Tensor unified = unified_attention(layer, i);
      after.add(chunk, base_after_[i], unified);
      if (layer_plan().mode == Mode::full) lead(layer, chunk);
      chunk.unified = streams_.keep(add_mlp(config_, layer, unified));
      chunk.base = streams_.keep(add_mlp(config_, base, base_after_[i].stream));
      if (layer_plan().leader >= 0 && result_.plan.last_follower_of(layer_plan().leader) == layer_)
        chunk.leaders.erase(layer_plan().leader);
    }
    before.all_reduce(group_);
    after.all_reduce(group_);
    std::tie(report.before, report.held_out_before) = before.relative();
    std::tie(report.after, report.held_out_after) = after.relative();
    for (double& energy : report.energies) energy /= before.fitted_norm();
    base_after_.clear();
    report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    announce(report);
    result_.layers.push_back(report);
  }

  // A leader with fewer key/value heads.
  void lead(const Layer& layer, Chunk& chunk) const {
    attention_heads(config_, result_.plan, layer_, layer, norm(config_, chunk.unified, layer.input_norm),
                    chunk.sequences, chunk.leaders);
    keep_leader(chunk);
  }

  at::Tensor unified_attention(const Layer& layer, size_t i) {
    const FitRows rows = rows_of(layer, i);
    const at::Tensor heads = branch_heads(rows, layer.v, layer_plan().head_map);
    return streams_.chunks()[i].unified + attention_output(config_, layer, heads, rows.x);
  }

  FitTargets targets(const Layer& layer) const {
    FitTargets targets = options_.fit;
    const bool own_values = layer_plan().mode == Mode::share_probs;
    targets.head_map &= own_values && layer_plan().head_map.empty();  // a map that the plan gives stays
    targets.value &= own_values;
    targets.output &= layer.o.defined();
    targets.compensation &= layer_plan().compensation.kind != Compensation::Kind::none;
    return targets;
  }

  // Fits the layer's branch; puts the result into `layer`, the plan and the weights.
  void fit(Layer& layer, LayerReport& report) {
    const RowStream rows = [&](const RowFilter& filter, const std::function<void(const FitRows&)>& visit) {
      for (size_t i = 0; i < base_after_.size(); ++i) {
        const Chunk& chunk = streams_.chunks()[i];
        if (chunk.held_out ? !filter.held_out : !filter.fitted) continue;
        if (filter.ranking && !chunk.ranking) continue;
        visit(rows_of(layer, i));
      }
    };
    LayerPlan& plan = result_.plan.layers[layer_];
    const FitTargets fitted = targets(layer);
    const Branch start{
        .v = layer.v, .o = with_norm_weight(config_, layer, layer.o), .compensation = {}, .head_map = plan.head_map};
    BranchFit fit;
    try {
      fit = fit_branch({.config = config_,
                        .start = start,
                        .fit = fitted,
                        .compensation = plan.compensation,
                        .ridge = options_.ridge,
                        .rows = rows,
                        .device = device_,
                        .survey = survey_},
                       group_);
    } catch (const Error& error) {
      fail("calibrating layer {}: {}", layer_, error.what());
    }
    report.ridge = fit.ridge;
    report.value_sweeps = fit.sweeps;
    report.energies = std::move(fit.energies);
    plan.head_map = fit.branch.head_map;
    layer.v = fit.branch.v;
    if (fitted.output) layer.o = without_norm_weight(config_, layer, fit.branch.o);
    if (plan.compensation.kind == Compensation::Kind::full)
      layer.compensation = without_norm_weight(config_, layer, fit.branch.compensation);
    if (fit.factors.up.defined()) {
      layer.compensation_up = without_norm_weight(config_, layer, fit.factors.up.to(at::kFloat).to(device_));
      layer.compensation_down = fit.factors.down.to(at::kFloat).to(device_);
    }
    for (const LayerSlot& slot : layer_slots(config_, plan, layer_)) {
      const at::Tensor& weight = layer.*slot.member;
      const bool is_fitted = (slot.member == &Layer::v && fitted.value) ||
                             (slot.member == &Layer::o && fitted.output) ||
                             (is_compensation(slot.name) && fitted.compensation);
      if (is_fitted && weight.defined()) result_.weights.emplace_back(slot.name, weight);
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
  const CalibrationOptions& options_;
  ProcessGroup& group_;
  at::Device device_;
  std::string directory_;
  bool survey_;  // of what the directions of the compensations explain
  std::string fingerprint_;
  Streams streams_;
  int64_t layer_ = 0;
  std::vector<BaseAttention> base_after_;  // by chunk, while a changed layer is under way
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
