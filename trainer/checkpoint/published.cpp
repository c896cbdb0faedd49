#include "checkpoint/published.h"

#include <algorithm>

#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

constexpr std::string_view kPublished = ".v2_proj.weight", kOurs = ".self_attn.compensation.weight";

// One ending of a name replaced by another; other names as they are.
std::string with_ending(const std::string& name, std::string_view from, std::string_view to) {
  return name.ends_with(from) ? name.substr(0, name.size() - from.size()) + std::string(to) : name;
}

class PublishedTensors : public TensorSource {
 public:
  explicit PublishedTensors(std::unique_ptr<TensorSource> tensors) : tensors_(std::move(tensors)) {}
  std::vector<std::string> names() const override {
    std::vector<std::string> names = tensors_->names();
    for (std::string& name : names) name = with_ending(name, kPublished, kOurs);
    std::ranges::sort(names);
    return names;
  }
  bool contains(const std::string& name) const override { return tensors_->contains(theirs(name)); }
  TensorInfo info(const std::string& name) const override { return tensors_->info(theirs(name)); }
  at::Tensor tensor(const std::string& name) const override { return tensors_->tensor(theirs(name)); }
  void release() const override { tensors_->release(); }

 private:
  static std::string theirs(const std::string& name) { return with_ending(name, kOurs, kPublished); }
  std::unique_ptr<TensorSource> tensors_;
};

// config.json without the plan's fields, which must agree with what was asked for.
json take_plan(json config, const PublishedPlan& plan) {
  for (const auto& [key, option, value] : {std::tuple{"grouping_idx", "--group", plan.group},
                                           {"grouping_begin_idx", "--begin", plan.begin},
                                           {"grouping_end_idx", "--end", plan.end}}) {
    if (config.contains(key) && config[key] != value)
      fail_usage("config.json has {} {}, but {} is {}", key, config[key].dump(), option, value);
    config.erase(key);
  }
  return config;
}

SharingPlan sharing_plan(const ModelConfig& config, const PublishedPlan& published, const TensorSource& tensors) {
  if (published.group < 2) fail_usage("--group: expected at least 2, got {}", published.group);
  if (published.begin < 0 || published.end <= published.begin)
    fail_usage("--end: expected more than --begin {}, got {}", published.begin, published.end);
  SharingPlan plan = SharingPlan::all_full(config.num_layers);
  int64_t leader = -1;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const bool follows = i % published.group != 0 && i >= published.begin && i < published.end;
    if (!follows) {
      leader = i;
      continue;
    }
    const auto at = static_cast<size_t>(i);
    plan.layers[at] = {.mode = Mode::share_probs,
                       .leader = leader,
                       .leader_mask = config.windows[at] != config.windows[static_cast<size_t>(leader)]};
  }
  const std::vector<int64_t> followers = plan.followers();
  if (followers.empty())
    fail_usage("no layer of {} follows under group {}, begin {}, end {}", config.num_layers, published.group,
               published.begin, published.end);
  const auto has_compensation = [&](int64_t layer) {
    return tensors.contains(fmt::format("model.layers.{}{}", layer, kOurs));
  };
  const bool compensated = has_compensation(followers.front());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerPlan& layer = plan.layers[static_cast<size_t>(i)];
    const bool expected = compensated && layer.mode != Mode::full;
    if (has_compensation(i) != expected)
      fail("under group {}, begin {}, end {} layer {} {}: another plan?", published.group, published.begin,
           published.end, i,
           layer.mode == Mode::full ? "does not follow, but has a v2_proj"
           : expected               ? "follows, but has no v2_proj as others have"
                                    : "has a v2_proj, which other followers have not");
    if (expected) layer.compensation.kind = Compensation::Kind::full;
  }
  return plan;
}

}  // namespace

PublishedCheckpoint open_published(const std::string& path, const PublishedPlan& plan) {
  PublishedCheckpoint checkpoint{
      .directory = make_model_directory(path, take_plan(read_json(path + "/config.json"), plan)),
      .tensors = std::make_unique<PublishedTensors>(open_model_tensors(path))};
  checkpoint.directory.plan = sharing_plan(checkpoint.directory.config, plan, *checkpoint.tensors);
  checkpoint.directory.plan.validate(checkpoint.directory.config.plan_limits());
  return checkpoint;
}

}  // namespace uniattn
