#include "calibration/calibrate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "calibration/ridge.h"
#include "data/loader.h"
#include "model/decoder.h"
#include "parallel/device.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

constexpr size_t kChunkTokens = 4096;  // that run through a layer at once

// Some whole documents and their hidden states. While no follower has come yet, `unified` is `base`.
struct Chunk {
  Batch batch;
  Sequences sequences;
  bool held_out = false;
  at::Tensor base, unified;        // [T, D]: the residual stream before the current layer
  std::map<int64_t, Probs> probs;  // by leader, of the unified stream
};

struct Fit {
  LayerPlan plan;
  std::vector<int64_t> blocks;  // of the features [heads' outputs, x], those that are fitted
  bool output = false, compensation = false;
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
    return std::move(result_);
  }

 private:
  void load_chunks(const TokenShards& data) {
    if (data.size() < 2)
      fail_usage("calibration needs at least two documents, one of them held out; found {}", data.size());
    const auto held_out = std::clamp<int64_t>(
        static_cast<int64_t>(options_.held_out * static_cast<double>(data.size()) + 0.5), 1, data.size() - 1);
    const at::Tensor embedding = read_tensor(tensors_, "model.embed_tokens.weight",
                                             {config_.vocab_size, config_.hidden_size}, at::kFloat, device_);
    add_chunks(data, 0, data.size() - held_out, false, embedding);
    add_chunks(data, data.size() - held_out, data.size(), true, embedding);
    result_.fitted_tokens = count_tokens(false);
    result_.held_out_tokens = count_tokens(true);
  }

  void add_chunks(const TokenShards& data, int64_t begin, int64_t end, bool held_out, const at::Tensor& embedding) {
    std::vector<Document> waiting;
    size_t tokens = 0;
    auto flush = [&] {
      if (waiting.empty()) return;
      Chunk chunk;
      chunk.batch = to_device(make_batch(waiting), device_);
      chunk.held_out = held_out;
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

  // The stream after an ordinary layer's attention. With `probs`, also its attention pattern for followers.
  at::Tensor full_attention(const Layer& layer, const Chunk& chunk, const at::Tensor& stream,
                            Probs* probs = nullptr) const {
    const at::Tensor x = norm(config_, stream, layer.input_norm);
    AttentionResult result =
        attention(rotated_heads(config_, x, layer.q, chunk.sequences),
                  rotated_heads(config_, x, layer.k, chunk.sequences), value_heads(config_, x, layer.v),
                  chunk.sequences.cu_seqlens, probs ? 1 : 0, attention_options(config_, layer_));
    if (probs) *probs = std::move(result.probs.front());
    return stream + attention_output(config_, layer, result.out, x);
  }

  void advance_full(const Layer& layer) {
    for (Chunk& chunk : chunks_) {
      const bool one_stream = chunk.unified.is_same(chunk.base);
      Probs* probs = plan_.leads(layer_) ? &chunk.probs[layer_] : nullptr;
      chunk.unified = add_mlp(config_, layer, full_attention(layer, chunk, chunk.unified, probs));
      chunk.base = one_stream ? chunk.unified : add_mlp(config_, layer, full_attention(layer, chunk, chunk.base));
    }
  }

  // Heads' outputs [T, heads * head_dim] of the follower and its normed input x [T, D], in the unified stream.
  std::pair<at::Tensor, at::Tensor> follow(const Layer& layer, const Chunk& chunk) const {
    const LayerPlan& plan = plan_.layers[layer_];
    const at::Tensor x = norm(config_, chunk.unified, layer.input_norm);
    const at::Tensor heads =
        attend(chunk.probs.at(plan.leader), value_heads(config_, x, layer.v), head_map_tensor(plan, device_));
    return {heads.flatten(1), x};
  }

  Fit what_to_fit() const {
    Fit fit{.plan = plan_.layers[layer_], .blocks = {}};
    fit.output = options_.fit_output;
    fit.compensation = options_.fit_compensation && fit.plan.compensation.kind != Compensation::Kind::none;
    if (fit.output) fit.blocks.push_back(config_.num_heads * config_.head_dim);
    if (fit.compensation) fit.blocks.push_back(config_.hidden_size);
    return fit;
  }

  static at::Tensor features(const Fit& fit, const at::Tensor& heads, const at::Tensor& x) {
    if (fit.output && fit.compensation) return at::cat({heads, x}, 1);
    return fit.output ? heads : x;
  }

  void advance_follower(Layer layer) {
    const auto start = std::chrono::steady_clock::now();
    const Fit fit = what_to_fit();
    if (!fit.blocks.empty()) {
      const auto [fitted, held_out] = gather(layer, fit);
      apply(layer, fit, fitted, held_out);
      result_.followers.back().seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      announce(result_.followers.back());
    } else {
      for (Chunk& chunk : chunks_) chunk.base = full_attention(layer, chunk, chunk.base);
    }
    for (Chunk& chunk : chunks_) {
      const auto [heads, x] = follow(layer, chunk);
      chunk.unified = add_mlp(config_, layer, chunk.unified + attention_output(config_, layer, heads, x));
      chunk.base = add_mlp(config_, layer, chunk.base);
      if (plan_.last_follower_of(plan_.layers[layer_].leader) == layer_) chunk.probs.erase(plan_.layers[layer_].leader);
    }
  }

  // Gram sums of what is missing from the unified stream after attention against the features. Leaves every chunk's
  // base stream after attention.
  std::pair<Gram, Gram> gather(const Layer& layer, const Fit& fit) {
    const int64_t size = std::accumulate(fit.blocks.begin(), fit.blocks.end(), int64_t{0});
    Gram fitted(size, config_.hidden_size), held_out(size, config_.hidden_size);
    stream_norm_[0] = stream_norm_[1] = 0;
    for (Chunk& chunk : chunks_) {
      const auto [heads, x] = follow(layer, chunk);
      chunk.base = full_attention(layer, chunk, chunk.base);
      const at::Tensor missing = chunk.base - chunk.unified - attention_output(config_, layer, heads, x);
      (chunk.held_out ? held_out : fitted).add(features(fit, heads, x), missing);
      stream_norm_[chunk.held_out] += chunk.base.square().sum(at::kDouble).item<double>();
    }
    fitted.all_reduce(group_);
    held_out.all_reduce(group_);
    for (double& norm : stream_norm_) norm = group_.sum(norm);
    return {std::move(fitted), std::move(held_out)};
  }

  // Solves for the update of W_o and for W_c, puts them into `layer` and into the result.
  void apply(Layer& layer, const Fit& fit, const Gram& fitted, const Gram& held_out) {
    RidgeSolution solution;
    LowRank factors;
    const bool low_rank = fit.compensation && fit.plan.compensation.kind == Compensation::Kind::low_rank;
    try {
      solution = solve_ridge(fitted, held_out, fit.blocks, options_.ridge);
      if (low_rank) factors = reduce_last_block(solution, fitted, held_out, fit.blocks, fit.plan.compensation.rank);
    } catch (const Error& error) {
      fail("calibrating layer {} (leader {}): {}", layer_, fit.plan.leader, error.what());
    }
    if (fit.output) layer.o = layer.o + solution.w.narrow(0, 0, layer.o.size(1)).t().to(layer.o);
    if (low_rank) {
      layer.compensation_up = factors.up.to(layer.o);
      layer.compensation_down = factors.down.to(layer.o);
    } else if (fit.compensation) {
      layer.compensation = solution.w.narrow(0, solution.w.size(0) - config_.hidden_size, config_.hidden_size)
                               .t()
                               .to(layer.o)
                               .contiguous();
    }
    for (const LayerSlot& slot : layer_slots(config_, fit.plan, layer_)) {
      const bool is_output = slot.member == &Layer::o;
      if ((is_output && fit.output) || (is_compensation(slot.name) && fit.compensation))
        result_.weights.emplace_back(slot.name, layer.*slot.member);
    }
    result_.followers.push_back({.layer = layer_,
                                 .leader = fit.plan.leader,
                                 .ridge = solution.ridge,
                                 .before = fitted.yy / stream_norm_[0],
                                 .after = solution.error / stream_norm_[0],
                                 .held_out_before = held_out.yy / stream_norm_[1],
                                 .held_out_after = solution.held_out_error / stream_norm_[1]});
  }

  static void announce(const FollowerReport& r) {
    log::info(fmt::format(
        "layer {:>2} follows {:>2}: ridge {:.0e}, missing from the stream (held out) {:.4f} -> {:.4f}, {:.1f} s",
        r.layer, r.leader, r.ridge, r.held_out_before, r.held_out_after, r.seconds));
  }

  const ModelConfig& config_;
  const TensorSource& tensors_;
  const SharingPlan& plan_;
  const CalibrationOptions& options_;
  ProcessGroup& group_;
  at::Device device_;
  std::vector<Chunk> chunks_;
  int64_t layer_ = 0;
  double stream_norm_[2] = {0, 0};  // squared norms of the base stream after attention: fitted, held out
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
  if (!plan.shares()) return {};
  return Calibration(model, tensors, plan, options, group).run(data);
}

nlohmann::ordered_json report_json(const CalibrationResult& result) {
  nlohmann::ordered_json followers = nlohmann::ordered_json::array();
  for (const FollowerReport& r : result.followers)
    followers.push_back({{"layer", r.layer},
                         {"leader", r.leader},
                         {"ridge", r.ridge},
                         {"residual", {{"before", r.before}, {"after", r.after}}},
                         {"held_out_residual", {{"before", r.held_out_before}, {"after", r.held_out_after}}},
                         {"seconds", r.seconds}});
  return {
      {"fitted_tokens", result.fitted_tokens}, {"held_out_tokens", result.held_out_tokens}, {"followers", followers}};
}

}  // namespace uniattn
