#include "calibration/segment_scores.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "calibration/base_attention.h"
#include "calibration/held_out_loss.h"
#include "calibration/ridge.h"
#include "model/decoder.h"
#include "parallel/device.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"

namespace uniattn {
namespace {

using Candidates = std::vector<const PlanCandidate*>;

// Candidates of one first layer and mode: the longer ones begin with the shorter, so that one stream serves them all.
struct Track {
  Candidates candidates;            // ascending in length
  SharingPlan plan;                 // the base model with the longest
  std::vector<at::Tensor> streams;  // for each chunk
  std::vector<Leaders> leaders;
  int64_t end() const { return candidates.back()->end; }
};

// A candidate's held-out chunks on their way through the ordinary layers behind it.
struct Tail {
  const PlanCandidate* candidate;
  std::vector<at::Tensor> streams;  // for each held-out chunk
};

class Scorer {
 public:
  Scorer(const ModelConfig& config, const TensorSource& tensors, const Streams& streams, std::optional<double> ridge,
         ScoreLog& log, ProcessGroup& group)
      : config_(config),
        tensors_(tensors),
        streams_(streams),
        chunks_(streams.chunks()),
        ridge_(ridge),
        log_(log),
        group_(group),
        base_plan_(SharingPlan::all_full(config.num_layers)),
        device_(compute_device(group.local_rank())),
        head_(config, tensors, device_) {}

  bool run(const std::vector<PlanCandidate>& candidates) {
    const at::NoGradGuard no_grad;
    std::map<int64_t, Candidates> unknown;  // by first layer
    for (const PlanCandidate& candidate : candidates)
      if (!log_.find(candidate.name())) unknown[candidate.begin].push_back(&candidate);
    std::vector<at::Tensor> base;
    for (const Chunk& chunk : chunks_) base.push_back(chunk.base);
    int64_t layer = 0;
    for (const auto& [begin, group] : unknown) {
      for (; layer < begin; ++layer) base = advance_base(read(layer), layer, base);
      if (!sweep(begin, group, base)) return false;
    }
    return true;
  }

 private:
  Layer read(int64_t layer) const { return read_layer(tensors_, config_, LayerPlan{}, layer, at::kFloat, device_); }

  std::vector<at::Tensor> advance_base(const Layer& layer, int64_t index,
                                       const std::vector<at::Tensor>& streams) const {
    std::vector<at::Tensor> next;
    Leaders none;
    for (size_t c = 0; c < chunks_.size(); ++c)
      next.push_back(streams_.keep(advance(config_, base_plan_, index, layer, streams[c], chunks_[c].sequences, none)));
    return next;
  }

  std::vector<Track> make_tracks(const Candidates& candidates, const std::vector<at::Tensor>& streams) const {
    std::map<Mode, Track> tracks;
    for (const PlanCandidate* candidate : candidates) tracks[candidate->mode].candidates.push_back(candidate);
    std::vector<Track> result;
    for (auto& [mode, track] : tracks) {
      track.plan = compose_plan(config_.num_layers, {*track.candidates.back()}, {0});
      track.streams = streams;
      track.leaders.resize(chunks_.size());
      result.push_back(std::move(track));
    }
    return result;
  }

  // What the layer's attention adds to the stream [T, D]; in post-norm families before that norm.
  at::Tensor branch(const SharingPlan& plan, const Layer& layer, int64_t index, const at::Tensor& stream, size_t c,
                    Leaders& leaders) const {
    const at::Tensor x = norm(config_, stream, layer.input_norm);
    const at::Tensor heads = attention_heads(config_, plan, index, layer, x, chunks_[c].sequences, leaders);
    return attention_branch(layer, heads, x);
  }

  // Scores the candidates that begin at layer `begin`, before which the base's streams are `base`.
  bool sweep(int64_t begin, const Candidates& candidates, std::vector<at::Tensor> base) {
    std::vector<Track> tracks = make_tracks(candidates, base);
    std::vector<Tail> tails;
    for (int64_t index = begin; index < config_.num_layers; ++index) {
      if (group_.any(stop_requested())) return false;
      const Layer layer = read(index);
      for (Tail& tail : tails) advance_tail(layer, index, tail);
      if (tracks.empty()) continue;
      const std::vector<BaseAttention> after = attention_of_base(layer, index, base);
      for (Track& track : tracks) {
        if (track.plan.layers[index].mode == Mode::full)
          advance_leader(layer, index, track);
        else
          advance_follower(layer, index, after, track);
        leave_track(index + 1, track, tails);
      }
      std::erase_if(tracks, [&](const Track& track) { return track.end() == index + 1; });
      for (size_t c = 0; c < base.size(); ++c) base[c] = streams_.keep(add_mlp(config_, layer, after[c].stream));
    }
    for (const Tail& tail : tails) conclude(tail);
    return true;
  }

  void advance_leader(const Layer& layer, int64_t index, Track& track) const {
    for (size_t c = 0; c < chunks_.size(); ++c) {
      Leaders& leaders = track.leaders[c];
      track.streams[c] =
          streams_.keep(advance(config_, track.plan, index, layer, track.streams[c], chunks_[c].sequences, leaders));
      if (const auto found = leaders.find(index); found != leaders.end()) streams_.keep(found->second);
    }
  }

  std::vector<BaseAttention> attention_of_base(const Layer& layer, int64_t index,
                                               const std::vector<at::Tensor>& base) const {
    std::vector<BaseAttention> result;
    for (size_t c = 0; c < base.size(); ++c) {
      result.push_back(base_attention(config_, base_plan_, index, layer, base[c], chunks_[c].sequences));
      result.back().stream = streams_.keep(result.back().stream);
    }
    return result;
  }

  void advance_follower(const Layer& base_layer, int64_t index, const std::vector<BaseAttention>& base, Track& track) {
    const LayerPlan& plan = track.plan.layers[index];
    const Layer layer = kept_weights(config_, plan, index, base_layer);
    std::vector<at::Tensor> branches;  // without compensation
    for (size_t c = 0; c < chunks_.size(); ++c)
      branches.push_back(streams_.keep(branch(track.plan, layer, index, track.streams[c], c, track.leaders[c])));
    at::Tensor compensation;
    if (plan.mode != Mode::skip) compensation = fit_compensation(layer, index, base, branches, track);
    for (size_t c = 0; c < chunks_.size(); ++c) {
      if (compensation.defined())
        branches[c] += uniattn::linear(norm(config_, track.streams[c], layer.input_norm), compensation);
      track.streams[c] =
          streams_.keep(add_mlp(config_, layer, track.streams[c] + post_attention(config_, layer, branches[c])));
    }
  }

  // W_c [D, D].
  at::Tensor fit_compensation(const Layer& layer, int64_t index, const std::vector<BaseAttention>& base,
                              const std::vector<at::Tensor>& branches, const Track& track) {
    Gram fitted(config_.hidden_size, config_.hidden_size), held_out(config_.hidden_size, config_.hidden_size);
    for (size_t c = 0; c < chunks_.size(); ++c) {
      at::Tensor x = norm(config_, track.streams[c], layer.input_norm), added = branches[c];
      if (config_.post_norms) {
        x = x / base[c].rms;
        added = with_norm_weight(config_, layer, (added / base[c].rms).t()).t();
      }
      (chunks_[c].held_out ? held_out : fitted).add(x, base[c].stream - track.streams[c] - added);
    }
    return without_norm_weight(config_, layer, solve(fitted, held_out, index));
  }

  at::Tensor solve(Gram& fitted, Gram& held_out, int64_t index) {
    fitted.all_reduce(group_);
    held_out.all_reduce(group_);
    try {
      return solve_ridge(fitted, held_out, {config_.hidden_size}, ridge_).w.t().to(device_, at::kFloat).contiguous();
    } catch (const Error& error) {
      fail("scoring a segment with layer {}: {}", index, error.what());
    }
  }

  // The candidate that ends before layer `index`, if there is one, goes on by itself.
  void leave_track(int64_t index, const Track& track, std::vector<Tail>& tails) const {
    for (const PlanCandidate* candidate : track.candidates) {
      if (candidate->end != index) continue;
      Tail& tail = tails.emplace_back(Tail{candidate, {}});
      for (size_t c = 0; c < chunks_.size(); ++c)
        if (chunks_[c].held_out) tail.streams.push_back(track.streams[c]);
    }
  }

  void advance_tail(const Layer& layer, int64_t index, Tail& tail) const {
    auto stream = tail.streams.begin();
    Leaders none;
    for (const Chunk& chunk : chunks_) {
      if (!chunk.held_out) continue;
      *stream = advance(config_, base_plan_, index, layer, *stream, chunk.sequences, none);
      ++stream;
    }
  }

  void conclude(const Tail& tail) {
    const double loss = head_.mean_loss(chunks_, tail.streams, group_);
    if (!std::isfinite(loss)) fail("the held-out loss with segment {} is not finite", tail.candidate->name());
    log_.add(tail.candidate->name(), loss);
    log::info(fmt::format("segment {:<20} held-out loss {:.4f}", tail.candidate->name(), loss));
  }

  const ModelConfig& config_;
  const TensorSource& tensors_;
  const Streams& streams_;
  const std::vector<Chunk>& chunks_;
  std::optional<double> ridge_;
  ScoreLog& log_;
  ProcessGroup& group_;
  SharingPlan base_plan_;
  at::Device device_;
  LossHead head_;
};

}  // namespace

ScoringWork scoring_work(int64_t num_layers, const std::vector<PlanCandidate>& candidates) {
  ScoringWork work;
  std::map<int64_t, std::map<Mode, int64_t>> ends;  // of the longest, by first layer
  for (const PlanCandidate& candidate : candidates) {
    work.held_out_layers += num_layers - candidate.end;
    int64_t& end = ends[candidate.begin][candidate.mode];
    end = std::max(end, candidate.end);
  }
  for (const auto& [begin, tracks] : ends) {
    int64_t longest = 0;
    for (const auto& [mode, end] : tracks) work.layers += end - begin, longest = std::max(longest, end);
    work.layers += longest - begin;  // of the base beside them
  }
  if (!ends.empty()) work.layers += ends.rbegin()->first;  // of the base up to the last leader
  return work;
}

bool score_segments(const ModelConfig& config, const TensorSource& tensors, const Streams& streams,
                    const std::vector<PlanCandidate>& candidates, std::optional<double> ridge, ScoreLog& log,
                    ProcessGroup& group) {
  return Scorer(config, tensors, streams, ridge, log, group).run(candidates);
}

}  // namespace uniattn
