#include "calibration/calibrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "calibration/token_stream.h"
#include "data/loader.h"
#include "model/decoder.h"
#include "parallel/device.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

constexpr size_t kChunkTokens = 4096;      // that run through a layer at once
constexpr int64_t kRankingTokens = 16384;  // that head maps are ranked on, and a quarter as many held out

// What a leader leaves for its followers.
struct Leader {
  Probs probs;
  at::Tensor v;
};

// Some whole documents and their hidden states. While no follower has come yet, `unified` is `base`.
struct Chunk {
  Batch batch;
  Sequences sequences;
  bool held_out = false, ranking = false;
  at::Tensor base, unified;           // [T, D]: the residual stream before the current layer
  at::Tensor branch_rms;              // [T, 1], post-norm families: of the base's attention branch before its norm
  std::map<int64_t, Leader> leaders;  // of the unified stream
};

class Calibration {
 public:
  Calibration(const ModelDirectory& model, const TensorSource& tensors, const SharingPlan& plan,
              const CalibrationOptions& options, ProcessGroup& group)
      : config_(model.config),
        tensors_(tensors),
        plan_(plan),
        options_(options),
        group_(group),
        device_(compute_device(group.local_rank())) {}

  CalibrationResult run(const TokenShards& data) {
    const at::NoGradGuard no_grad;
    load_chunks(data);
    const int64_t end = plan_.followers().back() + 1;  // nothing runs after the last follower
    for (layer_ = 0; layer_ < end; ++layer_) {
      // The base layer; a follower's own q and k serve the base stream alone.
      const Layer layer = read_layer(tensors_, config_, LayerPlan{}, layer_, at::kFloat, device_);
      if (plan_.layers[layer_].mode == Mode::full) {
        advance_full(layer);
      } else {
        advance_follower(layer);
      }
    }
    result_.plan = plan_;
    return std::move(result_);
  }

 private:
  void load_chunks(const TokenShards& data) {
    if (data.size() < 2)
      fail_usage("calibration needs at least two documents, one of them held out; found {}", data.size());
    const int64_t fitted = data.size() - held_out_documents(data.size(), options_.held_out);
    const int64_t ranking = documents_with(data, 0, fitted, kRankingTokens);
    const int64_t held_out_ranking = documents_with(data, fitted, data.size(), kRankingTokens / 4);
    const at::Tensor embedding = read_tensor(tensors_, "model.embed_tokens.weight",
                                             {config_.vocab_size, config_.hidden_size}, at::kFloat, device_);
    add_chunks(data, 0, ranking, {.held_out = false, .ranking = true}, embedding);
    add_chunks(data, ranking, fitted, {.held_out = false, .ranking = false}, embedding);
    add_chunks(data, fitted, held_out_ranking, {.held_out = true, .ranking = true}, embedding);
    add_chunks(data, held_out_ranking, data.size(), {.held_out = true, .ranking = false}, embedding);
    result_.fitted_tokens = count_tokens(false);
    result_.held_out_tokens = count_tokens(true);
  }

  // The end of the documents from `begin` on that have at least `tokens` tokens, or `end`.
  static int64_t documents_with(const TokenShards& data, int64_t begin, int64_t end, int64_t tokens) {
    for (; begin < end && tokens > 0; ++begin) tokens -= static_cast<int64_t>(data.document(begin).tokens.size());
    return begin;
  }

  struct Split {
    bool held_out, ranking;
  };

  void add_chunks(const TokenShards& data, int64_t begin, int64_t end, Split split, const at::Tensor& embedding) {
    std::vector<Document> waiting;
    size_t tokens = 0;
    auto flush = [&] {
      if (waiting.empty()) return;
      Chunk chunk;
      chunk.batch = to_device(make_batch(waiting), device_);
      chunk.held_out = split.held_out;
      chunk.ranking = split.ranking;
      chunk.sequences = make_sequences(config_, chunk.batch.positions, chunk.batch.cu_seqlens);
      chunk.base = chunk.unified = embed(config_, embedding, chunk.batch.tokens);
      chunks_.push_back(std::move(chunk));
      waiting.clear();
      tokens = 0;
    };
    for (int64_t i = begin + group_.rank(); i < end; i += group_.world_size()) {
      const Document document = data.document(i);
      if (tokens + document.tokens.size() > kChunkTokens) flush();
      waiting.push_back(document);
      tokens += document.tokens.size();
    }
    flush();
  }

  int64_t count_tokens(bool held_out) {
    int64_t tokens = 0;
    for (const Chunk& chunk : chunks_)
      if (chunk.held_out == held_out) tokens += chunk.batch.tokens.size(0);
    return group_.sum(tokens);
  }

  // The stream after an ordinary layer's attention. With `leader`, also what its followers use.
  at::Tensor full_attention(const Layer& layer, Chunk& chunk, const at::Tensor& stream, Leader* leader) const {
    const at::Tensor x = norm(config_, stream, layer.input_norm);
    const at::Tensor v = value_heads(config_, x, layer.v);
    AttentionResult result = attention(rotated_heads(config_, x, layer.q, chunk.sequences),
                                       rotated_heads(config_, x, layer.k, chunk.sequences), v,
                                       chunk.sequences.cu_seqlens, leader ? 1 : 0, attention_options(config_, layer_));
    if (leader) *leader = {std::move(result.probs.front()), v};
    return stream + attention_output(config_, layer, result.out, x);
  }

  void advance_full(const Layer& layer) {
    for (Chunk& chunk : chunks_) {
      const bool one_stream = chunk.unified.is_same(chunk.base);
      Leader* leader = plan_.leads(layer_) ? &chunk.leaders[layer_] : nullptr;
      chunk.unified = add_mlp(config_, layer, full_attention(layer, chunk, chunk.unified, leader));
      chunk.base =
          one_stream ? chunk.unified : add_mlp(config_, layer, full_attention(layer, chunk, chunk.base, nullptr));
    }
  }

  const LayerPlan& layer_plan() const { return plan_.layers[layer_]; }

  FitRows rows_of(const Layer& layer, const Chunk& chunk) const {
    FitRows rows;
    rows.held_out = chunk.held_out;
    rows.x = norm(config_, chunk.unified, layer.input_norm);
    rows.target = chunk.base - chunk.unified;
    rows.probs = &chunk.leaders.at(layer_plan().leader).probs;
    return rows;
  }

  void advance_follower(Layer layer) {
    const auto start = std::chrono::steady_clock::now();
    const RowStream rows = [&](const RowFilter& filter, const std::function<void(const FitRows&)>& visit) {
      for (const Chunk& chunk : chunks_) {
        if (chunk.held_out ? !filter.held_out : !filter.fitted) continue;
        if (filter.ranking && !chunk.ranking) continue;
        visit(rows_of(layer, chunk));
      }
    };
    for (Chunk& chunk : chunks_) chunk.base = full_attention(layer, chunk, chunk.base, nullptr);
    FollowerReport report{.layer = layer_, .leader = layer_plan().leader};
    std::tie(report.before, report.held_out_before) = stream_error(layer);
    fit(layer, rows, report);
    std::tie(report.after, report.held_out_after) = stream_error(layer);
    for (Chunk& chunk : chunks_) {
      chunk.unified = add_mlp(config_, layer, unified_attention(layer, chunk));
      chunk.base = add_mlp(config_, layer, chunk.base);
      if (plan_.last_follower_of(layer_plan().leader) == layer_) chunk.leaders.erase(layer_plan().leader);
    }
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    announce(report);
    result_.followers.push_back(report);
  }

  // The unified stream after the follower's attention.
  at::Tensor unified_attention(const Layer& layer, const Chunk& chunk) const {
    const FitRows rows = rows_of(layer, chunk);
    return chunk.unified + attention_output(config_, layer, branch_heads(rows, layer.v, layer_plan().head_map), rows.x);
  }

  // Squared distance of the unified stream from the base's after attention, relative to the latter's squared norm: on
  // fitted and on held-out tokens.
  std::pair<double, double> stream_error(const Layer& layer) const {
    at::Tensor sums = at::zeros({2, 2}, at::kDouble);
    for (const Chunk& chunk : chunks_) {
      const at::Tensor missing = chunk.base - unified_attention(layer, chunk);
      sums[chunk.held_out][0] += missing.square().sum(at::kDouble).cpu();
      sums[chunk.held_out][1] += chunk.base.square().sum(at::kDouble).cpu();
    }
    group_.all_reduce_sum(sums);
    const at::Tensor relative = sums.select(1, 0) / sums.select(1, 1);
    return {relative[0].item<double>(), relative[1].item<double>()};
  }

  // Fits the follower's branch; puts the result into `layer`, the plan and the weights.
  void fit(Layer& layer, const RowStream& rows, FollowerReport& report) {
    LayerPlan& plan = plan_.layers[layer_];
    FitTargets targets = options_.fit;
    targets.head_map = targets.head_map && plan.head_map.empty();  // a map that the plan gives stays
    targets.compensation = targets.compensation && plan.compensation.kind != Compensation::Kind::none;
    BranchFit fit;
    try {
      fit = fit_branch({.config = config_,
                        .start = {.v = layer.v, .o = layer.o, .compensation = {}, .head_map = plan.head_map},
                        .fit = targets,
                        .compensation = plan.compensation,
                        .ridge = options_.ridge,
                        .rows = rows,
                        .device = device_},
                       group_);
    } catch (const Error& error) {
      fail("calibrating layer {} (leader {}): {}", layer_, plan.leader, error.what());
    }
    report.ridge = fit.ridge;
    report.value_sweeps = fit.sweeps;
    plan.head_map = fit.branch.head_map;
    layer.v = fit.branch.v;
    layer.o = fit.branch.o;
    if (plan.compensation.kind == Compensation::Kind::full) layer.compensation = fit.branch.compensation;
    if (fit.factors.up.defined()) {
      layer.compensation_up = fit.factors.up.to(layer.o);
      layer.compensation_down = fit.factors.down.to(layer.o);
    }
    for (const LayerSlot& slot : layer_slots(config_, plan, layer_)) {
      const at::Tensor& weight = layer.*slot.member;
      const bool fitted = (slot.member == &Layer::v && targets.value) || (slot.member == &Layer::o && targets.output) ||
                          (is_compensation(slot.name) && targets.compensation);
      if (fitted && weight.defined()) result_.weights.emplace_back(slot.name, weight);
    }
  }

  static void announce(const FollowerReport& r) {
    log::info(fmt::format(
        "layer {:>2} follows {:>2}: ridge {:.0e}, missing from the stream (held out) {:.4f} -> {:.4f}, {:.1f} s",
        r.layer, r.leader, r.ridge, r.held_out_before, r.held_out_after, r.seconds));
  }

  const ModelConfig& config_;
  const TensorSource& tensors_;
  SharingPlan plan_;
  const CalibrationOptions& options_;
  ProcessGroup& group_;
  at::Device device_;
  std::vector<Chunk> chunks_;
  int64_t layer_ = 0;
  CalibrationResult result_;
};

}  // namespace

CalibrationResult calibrate(const ModelDirectory& model, const TensorSource& tensors, const SharingPlan& plan,
                            const TokenShards& data, const CalibrationOptions& options, ProcessGroup& group) {
  if (model.config.post_norms)
    fail_usage(
        "calibration of {} models (norm after attention) is not available in this version; leave out the `calibration` "
        "section",
        model.config.family);
  if (!plan.shares()) return {.plan = plan, .weights = {}, .followers = {}};
  return Calibration(model, tensors, plan, options, group).run(data);
}

nlohmann::ordered_json report_json(const CalibrationResult& result) {
  nlohmann::ordered_json followers = nlohmann::ordered_json::array();
  for (const FollowerReport& r : result.followers)
    followers.push_back({{"layer", r.layer},
                         {"leader", r.leader},
                         {"ridge", r.ridge},
                         {"value_sweeps", r.value_sweeps},
                         {"residual", {{"before", r.before}, {"after", r.after}}},
                         {"held_out_residual", {{"before", r.held_out_before}, {"after", r.held_out_after}}},
                         {"seconds", r.seconds}});
  return {
      {"fitted_tokens", result.fitted_tokens}, {"held_out_tokens", result.held_out_tokens}, {"followers", followers}};
}

}  // namespace uniattn
