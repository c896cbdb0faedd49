// What a stage minimises: cross-entropy, and on demand the distance to the base model.
#pragma once
#include <optional>

#include "config/config.h"
#include "model/decoder.h"

namespace uniattn {

// Tokens of a whole step, over all micro-batches and ranks. Every sum is divided by these, so that each split of a step
// gives the same gradient.
struct StepTokens {
  int64_t all = 0, supervised = 0;
};

// A micro-batch's share of the step's loss; scalars, float32.
struct Loss {
  at::Tensor total;          // to be differentiated
  at::Tensor cross_entropy;  // nats per supervised token
  at::Tensor distillation;   // undefined without a teacher
};

class Objective {
 public:
  // `student` and `teacher` must outlive this object; `teacher` may be null where the stage does not distill. Throws
  // UsageError when attention is to be matched and no layer of the student differs from the teacher's.
  Objective(const StageConfig& stage, const Decoder& student, const Decoder* teacher);

  Loss operator()(const Batch& batch, const StepTokens& step) const;

 private:
  at::Tensor attention_distance(const Batch& batch, const std::vector<at::Tensor>& states) const;
  at::Tensor logit_divergence(const Batch& batch, const at::Tensor& hidden) const;

  std::optional<DistillConfig> distill_;
  const Decoder& student_;
  const Decoder* teacher_;
  std::vector<int64_t> matched_layers_;
};

}  // namespace uniattn
