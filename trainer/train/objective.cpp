#include "train/objective.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "model/recompute.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr int64_t kLogitElements = int64_t{1} << 24;  // that exist at a time while logits are compared

// Log-probabilities [T, vocab] in float32.
at::Tensor log_probabilities(const Decoder& model, const at::Tensor& hidden, const at::Tensor& head,
                             double temperature) {
  at::Tensor logits = uniattn::linear(hidden, head).to(at::kFloat);
  if (const double cap = model.config.final_softcap; cap > 0) logits = (logits / cap).tanh() * cap;
  return at::log_softmax(logits / temperature, -1);
}

}  // namespace

Objective::Objective(const StageConfig& stage, const Decoder& student, const Decoder* teacher)
    : distill_(stage.distill), student_(student), teacher_(teacher) {
  if (!distill_ || distill_->target != "attention") return;
  for (int64_t i = 0; i < student.config.num_layers; ++i)
    if (student.plan.layers[i] != teacher->plan.layers[i]) matched_layers_.push_back(i);
  if (matched_layers_.empty())
    fail_usage("stage `{}` matches the base's attention, but no layer differs from the base: give the run a plan",
               stage.name);
}

Loss Objective::operator()(const Batch& batch, const StepTokens& step) const {
  std::vector<at::Tensor> states;
  const bool match_attention = !matched_layers_.empty();
  const at::Tensor hidden = student_.hidden(batch, match_attention ? &states : nullptr);
  const auto cross_entropy = [&](const at::Tensor& from, const at::Tensor& head) {
    const at::Tensor losses = linear_cross_entropy(from, head, batch.labels, student_.config.final_softcap);
    return losses.sum() / static_cast<double>(step.supervised);
  };
  if (!distill_) {
    const at::Tensor loss = cross_entropy(hidden, student_.head);
    return {.total = loss, .cross_entropy = loss.detach(), .distillation = {}};
  }
  const at::Tensor distance = match_attention ? attention_distance(batch, states) / static_cast<double>(step.all)
                                              : logit_divergence(batch, hidden) / static_cast<double>(step.supervised);
  const double weight = distill_->weight;
  // With all the weight on the teacher the cross-entropy is only watched.
  const at::Tensor loss =
      weight < 1 ? cross_entropy(hidden, student_.head) : cross_entropy(hidden.detach(), student_.head.detach());
  const at::Tensor total = weight < 1 ? weight * distance + (1 - weight) * loss : distance;
  return {.total = total, .cross_entropy = loss.detach(), .distillation = distance.detach()};
}

// Squared distance between the residual streams after attention, relative to the teacher's and averaged over the layers
// that differ, summed over tokens. Relative for each token: a few tokens have states far larger than all others.
at::Tensor Objective::attention_distance(const Batch& batch, const std::vector<at::Tensor>& states) const {
  std::vector<at::Tensor> targets;
  {
    const at::NoGradGuard no_grad;
    teacher_->hidden(batch, &targets);
  }
  at::Tensor sum = at::zeros({}, states[0].options().dtype(at::kFloat));
  for (const int64_t layer : matched_layers_) {
    const at::Tensor target = targets[layer].to(at::kFloat);
    const at::Tensor error = states[layer].to(at::kFloat) - target;
    sum = sum + (error.square().sum(-1) / target.square().sum(-1)).sum();
  }
  return sum / static_cast<double>(matched_layers_.size());
}

// KL(teacher || student) times temperature^2 (Hinton et al., arXiv 1503.02531), summed over supervised tokens.
at::Tensor Objective::logit_divergence(const Batch& batch, const at::Tensor& hidden) const {
  const at::Tensor rows = batch.labels.ne(-100).nonzero().squeeze(1);
  at::Tensor target_hidden;
  {
    const at::NoGradGuard no_grad;
    target_hidden = teacher_->hidden(batch).index_select(0, rows);
  }
  const at::Tensor own_hidden = hidden.index_select(0, rows);
  const double temperature = distill_->temperature;
  const int64_t chunk = std::max<int64_t>(1, kLogitElements / student_.config.vocab_size);
  // Backward passes through the model even where no token is supervised: other ranks count on this one.
  at::Tensor sum = hidden.sum().to(at::kFloat) * 0;
  for (int64_t begin = 0; begin < rows.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, rows.size(0) - begin);
    const auto divergence = [this, temperature, target = target_hidden.narrow(0, begin, count)](
                                const std::vector<at::Tensor>& inputs) -> std::vector<at::Tensor> {
      const at::Tensor own = log_probabilities(student_, inputs[0], inputs[1], temperature);
      const at::Tensor wanted = log_probabilities(*teacher_, target, teacher_->head, temperature);
      return {(wanted.exp() * (wanted - own)).sum() * (temperature * temperature)};
    };
    sum = sum + recompute(divergence, {own_hidden.narrow(0, begin, count), student_.head})[0];
  }
  return sum;
}

}  // namespace uniattn
