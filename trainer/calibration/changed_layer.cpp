#include "calibration/changed_layer.h"

#include <ATen/ATen.h>

#include "support/error.h"

namespace uniattn {
namespace {

// A full layer's own attention, for a fit of its values.
LeaderState own_attention(const ModelConfig& config, int64_t index, const Layer& layer, const Chunk& chunk) {
  const Projections own = project(config, layer, norm(config, chunk.unified, layer.input_norm), chunk.sequences);
  return {.probs = attention(own.q, own.k, own.v, chunk.sequences.cu_seqlens, 1, attention_options(config, index),
                             /*keep_probs=*/false)
                       .probs,
          .k = {},
          .v = {}};
}

}  // namespace

ChangedLayer::ChangedLayer(const CalibrationSetting& setting, SharingPlan& plan, int64_t index, const Layer& base,
                           Layer layer, Streams& streams)
    : setting_(setting),
      config_(setting.config),
      plan_(plan),
      index_(index),
      base_(base),
      layer_(std::move(layer)),
      streams_(streams) {
  const SharingPlan base_plan = SharingPlan::all_full(config_.num_layers);
  for (const Chunk& chunk : streams_.chunks()) {
    base_after_.push_back(base_attention(config_, base_plan, index_, base_, chunk.base, chunk.sequences));
    base_after_.back().stream = streams_.keep(base_after_.back().stream);
    if (layer_plan().mode != Mode::full) continue;
    own_.push_back(own_attention(config_, index_, layer_, chunk));
    streams_.keep(own_.back());
  }
}

LayerReport ChangedLayer::fit(NamedTensors& weights) {
  LayerReport report{.layer = index_, .leader = layer_plan().leader};
  std::tie(report.before, report.held_out_before) = stream_error();
  const FitTargets fitted = targets();
  const BranchFit found = fit_branch_of(fitted);
  report.ridge = found.ridge;
  report.value_sweeps = found.sweeps;
  for (const double energy : found.energies) report.energies.push_back(energy / base_norm_);
  take(found, fitted);
  for (const LayerSlot& slot : layer_slots(config_, layer_plan(), index_)) {
    const at::Tensor& weight = layer_.*slot.member;
    const bool is_fitted = (slot.member == &Layer::v && fitted.value) || (slot.member == &Layer::o && fitted.output) ||
                           (is_compensation(slot.name) && fitted.compensation);
    if (is_fitted && weight.defined()) weights.emplace_back(slot.name, weight);
  }
  std::tie(report.after, report.held_out_after) = stream_error();
  return report;
}

void ChangedLayer::advance() {
  for (size_t i = 0; i < base_after_.size(); ++i) {
    Chunk& chunk = streams_.chunks()[i];
    const at::Tensor unified = unified_attention(i);
    if (plan_.leads(index_)) {  // with fewer key/value heads
      attention_heads(config_, plan_, index_, layer_, norm(config_, chunk.unified, layer_.input_norm), chunk.sequences,
                      chunk.leaders);
      streams_.keep(chunk.leaders.at(index_));
    }
    chunk.unified = streams_.keep(add_mlp(config_, layer_, unified));
    chunk.base = streams_.keep(add_mlp(config_, base_, base_after_[i].stream));
    if (layer_plan().leader >= 0 && plan_.last_follower_of(layer_plan().leader) == index_)
      chunk.leaders.erase(layer_plan().leader);
  }
}

FitTargets ChangedLayer::targets() const {
  FitTargets targets = setting_.options.fit;
  // A map that the plan gives stays.
  targets.head_map &= layer_plan().mode == Mode::share_probs && layer_plan().head_map.empty();
  targets.value &= layer_plan().mode == Mode::share_probs || layer_plan().mode == Mode::full;
  targets.output &= layer_.o.defined();
  targets.compensation &= layer_plan().compensation.kind != Compensation::Kind::none;
  return targets;
}

FitRows ChangedLayer::rows_of(size_t i) const {
  const Chunk& chunk = streams_.chunks()[i];
  FitRows rows;
  rows.held_out = chunk.held_out;
  rows.x = norm(config_, chunk.unified, layer_.input_norm);
  rows.target = base_after_[i].stream - chunk.unified;
  if (config_.post_norms) rows.scale = base_after_[i].rms.reciprocal();
  if (layer_plan().mode == Mode::share_probs) {
    rows.probs = &chunk.leaders.at(layer_plan().leader).probs.back();
  } else if (layer_plan().mode == Mode::full) {
    rows.probs = &own_[i].probs.back();
  } else if (layer_.o.defined()) {
    Leaders leaders = chunk.leaders;  // a follower takes from its leader: from a copy here
    rows.heads = attention_heads(config_, plan_, index_, layer_, rows.x, chunk.sequences, leaders).flatten(1);
  }
  return rows;
}

RowStream ChangedLayer::row_stream() const {
  return [this](const RowFilter& filter, const std::function<void(const FitRows&)>& visit) {
    for (size_t i = 0; i < base_after_.size(); ++i) {
      const Chunk& chunk = streams_.chunks()[i];
      if (chunk.held_out ? !filter.held_out : !filter.fitted) continue;
      if (filter.ranking && !chunk.ranking) continue;
      visit(rows_of(i));
    }
  };
}

at::Tensor ChangedLayer::unified_attention(size_t i) const {
  const FitRows rows = rows_of(i);
  const at::Tensor heads = branch_heads(rows, layer_.v, layer_plan().head_map);
  return streams_.chunks()[i].unified + attention_output(config_, layer_, heads, rows.x);
}

// Squared distance of the unified stream from the base's after attention, relative to the latter's squared norm: on
// fitted and on held-out tokens.
std::pair<double, double> ChangedLayer::stream_error() {
  at::Tensor sums = at::zeros({2, 2}, at::kDouble);  // [fitted, held out], [distance, norm]
  for (size_t i = 0; i < base_after_.size(); ++i) {
    const at::Tensor row = sums[streams_.chunks()[i].held_out];
    row[0] += (base_after_[i].stream - unified_attention(i)).square().sum(at::kDouble).cpu();
    row[1] += base_after_[i].stream.square().sum(at::kDouble).cpu();
  }
  setting_.group.all_reduce_sum(sums);
  base_norm_ = sums[0][1].item<double>();
  const at::Tensor relative = sums.select(1, 0) / sums.select(1, 1);
  return {relative[0].item<double>(), relative[1].item<double>()};
}

BranchFit ChangedLayer::fit_branch_of(const FitTargets& targets) {
  const RowStream rows = row_stream();
  try {
    return fit_branch({.config = config_,
                       .start = {.v = layer_.v,
                                 .o = with_norm_weight(config_, layer_, layer_.o),
                                 .compensation = {},
                                 .head_map = layer_plan().head_map},
                       .fit = targets,
                       .compensation = layer_plan().compensation,
                       .ridge = setting_.options.ridge,
                       .rows = rows,
                       .device = setting_.device,
                       .survey = setting_.survey},
                      setting_.group);
  } catch (const Error& error) {
    fail("calibrating layer {}: {}", index_, error.what());
  }
}

void ChangedLayer::take(const BranchFit& fit, const FitTargets& targets) {
  LayerPlan& plan = plan_.layers[index_];
  plan.head_map = fit.branch.head_map;
  layer_.v = fit.branch.v;
  if (targets.output) layer_.o = without_norm_weight(config_, layer_, fit.branch.o);
  if (plan.compensation.kind == Compensation::Kind::full)
    layer_.compensation = without_norm_weight(config_, layer_, fit.branch.compensation);
  if (fit.factors.up.defined()) {
    layer_.compensation_up = without_norm_weight(config_, layer_, fit.factors.up.to(at::kFloat).to(setting_.device));
    layer_.compensation_down = fit.factors.down.to(at::kFloat).to(setting_.device);
  }
}

}  // namespace uniattn
