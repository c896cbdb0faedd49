#include "calibration/plan_search.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "calibration/fingerprint.h"
#include "calibration/held_out_loss.h"
#include "calibration/plan_budget.h"
#include "calibration/segment_scores.h"
#include "config/plan_config.h"
#include "parallel/device.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

constexpr const char* kBase = "base";

std::vector<PlanCandidate> candidates_of(const ModelConfig& config, const SearchConfig& search) {
  std::vector<Mode> modes;
  for (const std::string& mode : search.modes) modes.push_back(parse_mode(mode));
  return plan_candidates(config, modes, search.max_group, compensation_of(search.compensation));
}

// The candidates with their savings and costs. Those that save nothing are left to none.
class Composer {
 public:
  Composer(const ModelConfig& config, const PlanSearchOptions& options, const std::vector<PlanCandidate>& candidates)
      : config_(config),
        search_(options.search),
        budget_(config, options.search.budget, options.context),
        candidates_(candidates) {
    for (size_t c = 0; c < candidates.size(); ++c) {
      const int64_t saving = budget_.saving(candidates[c]);
      if (saving <= 0) continue;
      useful_.push_back(c);
      segments_.push_back({candidates[c].begin, candidates[c].end, saving, 0});
    }
  }

  void require_feasible() const {
    if (!best_plans(config_.num_layers, segments_, budget_.range(), 1).empty()) return;
    std::vector<PlanSegment> most = segments_;
    for (PlanSegment& segment : most) segment.cost = -static_cast<double>(segment.saving);
    const PlanChoice choice = best_plans(config_.num_layers, most, {0, INT64_MAX - 1}, 1).front();
    fail_usage(
        "search.budget asks for {}, and no plan does that with superblocks of up to {} layers of {} in modes {}; the "
        "furthest is {}: change the budget, search.max_group, search.modes or search.compensation",
        budget_.describe(budget_.range().least), search_.max_group, config_.num_layers, fmt::join(search_.modes, ", "),
        budget_.describe(static_cast<int64_t>(std::llround(-choice.cost))));
  }

  // The plans of the least total increase, and the regular ones of as many followers as the first of them has.
  std::vector<MeasuredPlan> compose(const std::vector<double>& increases) {
    for (size_t s = 0; s < segments_.size(); ++s) segments_[s].cost = increases[useful_[s]];
    std::vector<MeasuredPlan> plans;
    for (const PlanChoice& choice : best_plans(config_.num_layers, segments_, budget_.range(), search_.rescore)) {
      std::vector<size_t> chosen;
      for (const size_t s : choice.segments) chosen.push_back(useful_[s]);
      add(fmt::format("best {}", plans.size() + 1), chosen, increases, plans);
    }
    const size_t followers = plans.front().plan.followers().size();
    for (const std::string& mode : search_.modes)
      for (int64_t group = 2; group <= search_.max_group; ++group)
        add_regular(parse_mode(mode), group, followers, increases, plans);
    return plans;
  }

 private:
  void add(const std::string& name, const std::vector<size_t>& chosen, const std::vector<double>& increases,
           std::vector<MeasuredPlan>& plans) const {
    MeasuredPlan made{.name = name, .segments = chosen};
    made.plan = compose_plan(config_.num_layers, candidates_, chosen);
    for (const size_t c : chosen) made.estimate += increases[c];
    const auto same = std::ranges::find(plans, made.plan, &MeasuredPlan::plan);
    if (same == plans.end())
      plans.push_back(std::move(made));
    else
      same->name += ", " + name;
  }

  // As published: superblocks of one size up to the last layer, which the last of them may reach sooner.
  void add_regular(Mode mode, int64_t group, size_t followers, const std::vector<double>& increases,
                   std::vector<MeasuredPlan>& plans) const {
    for (int64_t begin = config_.num_layers - 2; begin >= 0; --begin) {
      std::vector<size_t> chosen;
      int64_t saving = 0;
      size_t found = 0;
      for (int64_t first = begin; first < config_.num_layers; first += group) {
        for (const size_t c : regular_block(mode, first, std::min(first + group, config_.num_layers))) {
          chosen.push_back(c);
          saving += budget_.saving(candidates_[c]);
          found += candidates_[c].followers();
        }
      }
      if (found != followers || saving < budget_.range().least || saving > budget_.range().most) continue;
      return add(fmt::format("regular {}{}", group, search_.modes.size() > 1 ? " " + to_string(mode) : ""), chosen,
                 increases, plans);
    }
  }

  // The candidates that make of layers [first, end) a superblock: one, or in modes without leaders one for each layer
  // but the first.
  std::vector<size_t> regular_block(Mode mode, int64_t first, int64_t end) const {
    std::vector<size_t> chosen;
    for (size_t c = 0; c < candidates_.size(); ++c) {
      const PlanCandidate& candidate = candidates_[c];
      const bool whole = candidate.begin == first && candidate.end == end && candidate.layers.size() > 1;
      const bool single = candidate.begin > first && candidate.end <= end && candidate.layers.size() == 1;
      if (candidate.mode == mode && (whole || single)) chosen.push_back(c);
    }
    return chosen;
  }

  const ModelConfig& config_;
  const SearchConfig& search_;
  PlanBudget budget_;
  const std::vector<PlanCandidate>& candidates_;
  std::vector<size_t> useful_;  // numbers of the candidates that segments_ are
  std::vector<PlanSegment> segments_;
};

std::string plan_key(const MeasuredPlan& plan, const std::vector<PlanCandidate>& candidates) {
  std::string key = "plan";
  for (const size_t c : plan.segments) key += ", " + candidates[c].name();
  return key;
}

// The held-out loss of a plan after calibration; empty when a signal asked to stop, which keeps the calibration's
// progress in `directory`.
std::optional<double> measured_loss(const ModelDirectory& model, const TensorSource& tensors, const SharingPlan& plan,
                                    const TokenShards& data, const std::vector<Chunk>& chunks,
                                    const PlanSearchOptions& options, ProcessGroup& group) {
  const std::string progress = options.directory + "/progress";
  const auto calibrated = calibrate(model, tensors, plan, data, options.calibration, group, progress);
  if (!calibrated) return std::nullopt;
  const double loss = held_out_loss(model.config, tensors, calibrated->plan, calibrated->weights, chunks, group);
  if (group.rank() == 0) std::filesystem::remove_all(progress);
  group.barrier();
  return loss;
}

}  // namespace

PlanSearchResult search_plan(const ModelDirectory& model, const TensorSource& tensors, const TokenShards& data,
                             const PlanSearchOptions& options, ScoreLog& log, ProcessGroup& group) {
  const ModelConfig& config = model.config;
  PlanSearchResult result{.candidates = candidates_of(config, options.search)};
  Composer composer(config, options, result.candidates);
  composer.require_feasible();

  const at::Device device = compute_device(group.local_rank());
  const Streams streams(config, tensors, data, options.calibration.held_out, options.directory, group, device);
  const std::vector<Chunk>& chunks = streams.chunks();
  if (!log.find(kBase))
    log.add(kBase, held_out_loss(config, tensors, SharingPlan::all_full(config.num_layers), {}, chunks, group));
  result.base_loss = *log.find(kBase);
  if (!score_segments(config, tensors, streams, result.candidates, options.calibration.ridge, log, group)) return {};
  for (const PlanCandidate& candidate : result.candidates)
    result.increases.push_back(*log.find(candidate.name()) - result.base_loss);

  result.plans = composer.compose(result.increases);
  for (MeasuredPlan& plan : result.plans) {
    const std::string key = plan_key(plan, result.candidates);
    if (!log.find(key)) {
      log::info(fmt::format("measuring {} ({})", key, plan.name));
      const auto loss = measured_loss(model, tensors, plan.plan, data, chunks, options, group);
      if (!loss) return {};
      log.add(key, *loss);
    }
    plan.loss = *log.find(key);
  }
  std::ranges::stable_sort(result.plans, {}, &MeasuredPlan::loss);
  result.finished = true;
  return result;
}

PlanSearchOutline outline_search(const ModelConfig& config, const PlanSearchOptions& options) {
  const std::vector<PlanCandidate> candidates = candidates_of(config, options.search);
  Composer(config, options, candidates).require_feasible();
  const ScoringWork work = scoring_work(config.num_layers, candidates);
  const double held_out_passes = options.calibration.held_out * static_cast<double>(work.held_out_layers);
  const auto modes = static_cast<int64_t>(options.search.modes.size());
  return {.candidates = static_cast<int64_t>(candidates.size()),
          .passes = (static_cast<double>(work.layers) + held_out_passes) / static_cast<double>(config.num_layers),
          .calibrations = options.search.rescore + (options.search.max_group - 1) * modes};
}

std::string search_fingerprint(const ModelDirectory& model, const TokenShards& data, const PlanSearchOptions& options) {
  return fmt::format("{} {} {}", calibration_fingerprint(model, data, options.calibration),
                     options.search.compensation.kind, options.search.compensation.rank);
}

}  // namespace uniattn
