#include "train/adamw.h"

#include <map>

#include "support/error.h"

namespace uniattn {
namespace {

std::vector<at::Tensor> pick(const std::vector<at::Tensor>& tensors, const std::vector<size_t>& members) {
  std::vector<at::Tensor> picked;
  for (size_t i : members) picked.push_back(tensors[i]);
  return picked;
}

}  // namespace

AdamW::AdamW(const TrainedParameters& parameters, const OptimizerConfig& config)
    : config_(config), names_(parameters.names()), groups_{{config.weight_decay, {}}, {0.0, {}}} {
  for (size_t i = 0; i < names_.size(); ++i) {
    const at::Tensor& master = parameters.masters()[i];
    first_.push_back(at::zeros_like(master));
    second_.push_back(at::zeros_like(master));
    steps_.push_back(at::zeros({}, master.options()));
    groups_[master.dim() > 1 ? 0 : 1].members.push_back(i);
  }
}

void AdamW::step(const TrainedParameters& parameters, double learning_rate) {
  for (const Group& group : groups_) {
    if (group.members.empty()) continue;
    const std::vector<at::Tensor> steps = pick(steps_, group.members);
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(pick(parameters.masters(), group.members), pick(parameters.gradients(), group.members),
                      pick(first_, group.members), pick(second_, group.members), /*max_exp_avg_sqs=*/{}, steps,
                      learning_rate, config_.beta1, config_.beta2, group.weight_decay, config_.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
}

NamedTensors AdamW::state() const {
  NamedTensors state;
  for (size_t i = 0; i < names_.size(); ++i) {
    state.emplace_back("exp_avg." + names_[i], first_[i]);
    state.emplace_back("exp_avg_sq." + names_[i], second_[i]);
    state.emplace_back("step." + names_[i], steps_[i]);
  }
  return state;
}

void AdamW::load(const NamedTensors& state) {
  const std::map<std::string, at::Tensor> saved(state.begin(), state.end());
  NamedTensors own = this->state();
  if (saved.size() != own.size())
    fail("the snapshot holds {} moment tensors, this stage has {}", saved.size(), own.size());
  for (auto& [name, tensor] : own) {
    const auto found = saved.find(name);
    if (found == saved.end()) fail("the snapshot lacks the moment tensor `{}`", name);
    if (found->second.sizes() != tensor.sizes()) fail("the snapshot's moment tensor `{}` has another shape", name);
    tensor.copy_(found->second);
  }
}

}  // namespace uniattn
