// The sharing plan: which layers keep their own softmax attention and which borrow it (docs/method.md). Pure data.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace uniattn {

enum class Mode { full, share_probs, share_kv, linear, skip };

std::string to_string(Mode mode);
bool has_leader(Mode mode);  // share_probs and share_kv
// Throws UsageError naming the known modes.
Mode parse_mode(const std::string& name);

// Rank of a compensation: none, the full D x D matrix, or a low rank r as up [D, r] * down [r, D].
struct Compensation {
  enum class Kind { none, full, low_rank } kind = Kind::none;
  int64_t rank = 0;  // low_rank only
  bool operator==(const Compensation&) const = default;
};

std::string to_string(const Compensation& compensation);  // "none", "full", "rank 8"

struct LayerPlan {
  Mode mode = Mode::full;
  int64_t leader = -1;  // share_probs and share_kv only: the layer whose P (or K, V) is used
  Compensation compensation{};
  std::vector<int64_t> head_map{};  // share_probs only: leader head of each query head; empty is the identity
  int64_t num_kv_heads = 0;         // full only: key/value heads, fewer than the model's; 0: the model's
  bool leader_mask = false;         // share_probs and share_kv only: the leader's mask although one's own is another
  bool operator==(const LayerPlan&) const = default;
};

// What a plan must fit. windows[i] is layer i's sliding window in tokens, 0 for global attention.
struct PlanLimits {
  int64_t num_layers, num_heads, num_kv_heads, hidden_size;
  std::vector<int64_t> windows;
};

struct SharingPlan {
  std::vector<LayerPlan> layers;  // one entry per layer

  static SharingPlan all_full(int64_t num_layers);
  // Layer i of [begin, end) leads when (i - begin) mod group = 0 and follows the nearest leader otherwise; `end` may
  // exceed the number of layers and the last superblock may be shorter. Throws UsageError when group < 1, begin < 0 or
  // begin is not below num_layers, or end <= begin.
  static SharingPlan regular(int64_t num_layers, Mode mode, int64_t group, int64_t begin, int64_t end,
                             Compensation compensation);

  bool shares() const;                     // any layer that is not as in the base: not full, or fewer key/value heads
  bool leads(int64_t layer) const;         // some follower refers to it
  std::vector<int64_t> followers() const;  // layers that are not full, ascending
  std::vector<int64_t> followers_of(int64_t leader) const;
  // The last follower of `leader`, or -1: when what it left for them may be let go.
  int64_t last_follower_of(int64_t leader) const;
  // The layer whose mask layer `layer` attends under: its leader, or itself.
  int64_t mask_layer(int64_t layer) const;

  // Throws UsageError naming the layer: leader not below it or not full, head map of wrong length or range, rank out of
  // (0, D), mixed mask types without leader_mask, num_kv_heads that is not a smaller divisor of the model's, or an
  // entry that its mode has no use for.
  void validate(const PlanLimits& limits) const;
  bool operator==(const SharingPlan&) const = default;
};

}  // namespace uniattn
