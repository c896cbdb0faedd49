#include "train/adamw.h"

#include <ATen/ATen.h>

#include "support/error.h"

namespace uniattn {
namespace {

const std::string kFirst = "exp_avg.", kSecond = "exp_avg_sq.", kSteps = "step";

// Segments that share a weight decay, as the fused kernel takes them.
struct Members {
  std::vector<at::Tensor> masters, gradients, first, second;
};

}  // namespace

AdamW::AdamW(const Parameters& parameters, const OptimizerConfig& config) : config_(config) {
  for (const Segment& segment : parameters.segments(Role::trained)) {
    first_.push_back(at::zeros_like(segment.master));
    second_.push_back(at::zeros_like(segment.master));
    steps_ = at::zeros({}, segment.master.options());
  }
}

void AdamW::step(const Parameters& parameters, double learning_rate) {
  Members decayed, others;
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  for (size_t i = 0; i < segments.size(); ++i) {
    Members& members = segments[i].shape.size() > 1 ? decayed : others;
    members.masters.push_back(segments[i].master);
    members.gradients.push_back(segments[i].gradient);
    members.first.push_back(first_[i]);
    members.second.push_back(second_[i]);
  }
  if (segments.empty()) return;  // more ranks than there is to share
  steps_.add_(1);
  for (const auto& [members, decay] : {std::pair(&decayed, config_.weight_decay), std::pair(&others, 0.0)}) {
    if (members->masters.empty()) continue;
    at::_fused_adamw_(members->masters, members->gradients, members->first, members->second, /*max_exp_avg_sqs=*/{},
                      std::vector<at::Tensor>(members->masters.size(), steps_), learning_rate, config_.beta1,
                      config_.beta2, decay, config_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
}

TensorParts AdamW::state(const Parameters& parameters, bool first_rank) const {
  TensorParts state;
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].kept == 0) continue;
    state.push_back(kept_part(segments[i], kFirst + segments[i].name, first_[i]));
    state.push_back(kept_part(segments[i], kSecond + segments[i].name, second_[i]));
  }
  if (first_rank) state.push_back({.name = kSteps, .shape = {}, .begin = 0, .values = steps_.view({1})});
  return state;
}

void AdamW::load(const Parameters& parameters, const TensorSource& moments) {
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const int64_t end = segment.begin + segment.master.numel();
    for (const auto& [prefix, moment] : {std::pair(kFirst, first_[i]), std::pair(kSecond, second_[i])}) {
      if (moments.info(prefix + segment.name).shape != segment.shape)
        fail("the snapshot's moment tensor `{}` has another shape", prefix + segment.name);
      moment.copy_(moments.slice(prefix + segment.name, segment.begin, end));
    }
  }
  if (!segments.empty()) steps_.copy_(moments.tensor(kSteps));
}

}  // namespace uniattn
