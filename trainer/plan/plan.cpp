#include "plan/plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "support/error.h"

namespace uniattn {
namespace {

constexpr std::array<std::pair<Mode, const char*>, 5> kModeNames = {{{Mode::full, "full"},
                                                                     {Mode::share_probs, "share_probs"},
                                                                     {Mode::share_kv, "share_kv"},
                                                                     {Mode::linear, "linear"},
                                                                     {Mode::skip, "skip"}}};

std::string span_of(int64_t window) {
  return window == 0 ? "global" : fmt::format("sliding over {} tokens", window);
}

void check_leader(const SharingPlan& plan, const PlanLimits& limits, int64_t i) {
  const LayerPlan& layer = plan.layers[i];
  if (!has_leader(layer.mode)) {
    if (layer.leader_mask) {
      fail_usage(
          "plan: layer {} has mode {} and `mask: leader`; only share_probs and share_kv have a leader: remove it", i,
          to_string(layer.mode));
    }
    if (layer.leader != -1) {
      fail_usage("plan: layer {} has mode {} and a leader ({}); only share_probs and share_kv have one: remove it", i,
                 to_string(layer.mode), layer.leader);
    }
    return;
  }
  if (layer.leader < 0 || layer.leader >= i) {
    fail_usage("plan: the leader of layer {} is {}; it must be one of the layers 0 to {} before it", i, layer.leader,
               i - 1);
  }
  const Mode leader_mode = plan.layers[layer.leader].mode;
  if (leader_mode != Mode::full) {
    fail_usage("plan: layer {} follows layer {}, which has mode {}; a leader must be full: follow a full layer", i,
               layer.leader, to_string(leader_mode));
  }
  if (limits.windows[i] != limits.windows[layer.leader] && !layer.leader_mask) {
    fail_usage(
        "plan: the attention of layer {} is {}, that of its leader {} is {}; take a leader with the same mask, or set "
        "`mask: leader`, and the layer takes its leader's",
        i, span_of(limits.windows[i]), layer.leader, span_of(limits.windows[layer.leader]));
  }
}

void check_compensation(const LayerPlan& layer, const PlanLimits& limits, int64_t i) {
  const Compensation& compensation = layer.compensation;
  const bool present = compensation.kind != Compensation::Kind::none;
  if (present && (layer.mode == Mode::full || layer.mode == Mode::skip)) {
    fail_usage(
        "plan: layer {} has mode {} and a compensation; only share_probs, share_kv and linear layers have one: "
        "set it to none",
        i, to_string(layer.mode));
  }
  if (!present && layer.mode == Mode::linear) {
    fail_usage(
        "plan: layer {} has mode linear and no compensation, which is all that such a layer computes: "
        "give it one, or use mode skip",
        i);
  }
  if (compensation.kind == Compensation::Kind::low_rank &&
      (compensation.rank <= 0 || compensation.rank >= limits.hidden_size)) {
    fail_usage(
        "plan: the compensation of layer {} has rank {}; it must be above 0 and below the hidden size {}, "
        "or use `full`",
        i, compensation.rank, limits.hidden_size);
  }
}

void check_kv_heads(const LayerPlan& layer, const PlanLimits& limits, int64_t i) {
  const int64_t heads = layer.num_kv_heads;
  if (heads == 0) return;
  if (layer.mode != Mode::full) {
    fail_usage("plan: layer {} has mode {} and num_kv_heads {}; only full layers may reduce them: remove it", i,
               to_string(layer.mode), heads);
  }
  if (heads < 0 || heads >= limits.num_kv_heads || limits.num_kv_heads % heads != 0) {
    fail_usage(
        "plan: layer {} has num_kv_heads {}; it must divide the model's {} key/value heads and be fewer: choose such a "
        "number, or leave it out for all of them",
        i, heads, limits.num_kv_heads);
  }
}

void check_head_map(const LayerPlan& layer, const PlanLimits& limits, int64_t i) {
  const std::vector<int64_t>& map = layer.head_map;
  if (map.empty()) return;
  if (layer.mode != Mode::share_probs) {
    fail_usage("plan: layer {} has mode {} and a head map; only share_probs layers have one: remove it", i,
               to_string(layer.mode));
  }
  if (std::cmp_not_equal(map.size(), limits.num_heads)) {
    fail_usage("plan: the head map of layer {} has {} entries; the model has {} query heads: give one entry for each",
               i, map.size(), limits.num_heads);
  }
  for (size_t head = 0; head < map.size(); ++head) {
    if (map[head] < 0 || map[head] >= limits.num_heads) {
      fail_usage("plan: the head map of layer {} sends head {} to {}; the leader's heads are 0 to {}", i, head,
                 map[head], limits.num_heads - 1);
    }
  }
}

}  // namespace

std::string to_string(const Compensation& compensation) {
  if (compensation.kind == Compensation::Kind::low_rank) return fmt::format("rank {}", compensation.rank);
  return compensation.kind == Compensation::Kind::full ? "full" : "none";
}

bool has_leader(Mode mode) {
  return mode == Mode::share_probs || mode == Mode::share_kv;
}

std::string to_string(Mode mode) {
  return std::ranges::find(kModeNames, mode, &std::pair<Mode, const char*>::first)->second;
}

Mode parse_mode(const std::string& name) {
  for (const auto& [mode, known] : kModeNames) {
    if (name == known) return mode;
  }
  fail_usage("unknown mode '{}': the modes are full, share_probs, share_kv, linear and skip", name);
}

SharingPlan SharingPlan::all_full(int64_t num_layers) {
  return {std::vector<LayerPlan>(num_layers)};
}

SharingPlan SharingPlan::regular(int64_t num_layers, Mode mode, int64_t group, int64_t begin, int64_t end,
                                 Compensation compensation) {
  if (group < 1) fail_usage("plan: group is {}; it is the number of layers of a superblock, at least 1", group);
  if (begin < 0 || begin >= num_layers) {
    fail_usage("plan: begin is {}; the model's layers are 0 to {}", begin, num_layers - 1);
  }
  if (end <= begin) fail_usage("plan: end is {} and begin is {}; end must be above begin", end, begin);
  SharingPlan plan = all_full(num_layers);
  for (int64_t i = begin; i < std::min(end, num_layers); ++i) {
    const int64_t place = (i - begin) % group;
    if (place == 0 || mode == Mode::full) continue;
    plan.layers[i] = {.mode = mode, .leader = has_leader(mode) ? i - place : -1, .compensation = compensation};
  }
  return plan;
}

bool SharingPlan::shares() const {
  return *this != all_full(static_cast<int64_t>(layers.size()));
}

bool SharingPlan::leads(int64_t layer) const {
  return last_follower_of(layer) != -1;
}

std::vector<int64_t> SharingPlan::followers() const {
  std::vector<int64_t> found;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].mode != Mode::full) found.push_back(static_cast<int64_t>(i));
  }
  return found;
}

std::vector<int64_t> SharingPlan::followers_of(int64_t leader) const {
  std::vector<int64_t> found;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (has_leader(layers[i].mode) && layers[i].leader == leader) found.push_back(static_cast<int64_t>(i));
  }
  return found;
}

int64_t SharingPlan::last_follower_of(int64_t leader) const {
  const std::vector<int64_t> found = followers_of(leader);
  return found.empty() ? -1 : found.back();
}

int64_t SharingPlan::mask_layer(int64_t layer) const {
  return has_leader(layers[layer].mode) ? layers[layer].leader : layer;
}

void SharingPlan::validate(const PlanLimits& limits) const {
  if (std::cmp_not_equal(layers.size(), limits.num_layers)) {
    fail_usage("plan: it has {} layers, the model has {}; use the plan that was made for this model", layers.size(),
               limits.num_layers);
  }
  for (int64_t i = 0; i < limits.num_layers; ++i) {
    check_leader(*this, limits, i);
    check_compensation(layers[i], limits, i);
    check_kv_heads(layers[i], limits, i);
    check_head_map(layers[i], limits, i);
  }
}

}  // namespace uniattn
