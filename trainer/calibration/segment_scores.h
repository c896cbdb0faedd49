// How much each candidate segment alone raises the held-out loss of the otherwise unchanged base model.
#pragma once
#include <optional>
#include <vector>

#include "calibration/plan_candidates.h"
#include "calibration/score_log.h"
#include "calibration/streams.h"

namespace uniattn {

// The layer passes of score_segments over all calibration tokens, and over the held-out ones alone.
struct ScoringWork {
  int64_t layers = 0, held_out_layers = 0;
};
ScoringWork scoring_work(int64_t num_layers, const std::vector<PlanCandidate>& candidates);

// Finds the held-out loss with each candidate that `log` does not know, under its name, and adds it there. The streams
// are at the embeddings. Followers have a full W_c by least squares (empty `ridge`: chosen on held-out rows) and
// nothing else fitted, which is enough to rank segments. The base's hidden states go through the model once; all
// candidates of a leader start there and share each layer that is read. Ranks share the documents. Returns false when a
// signal asked to stop: the same call goes on with the leader that was interrupted. Throws Error naming the layer when
// activations are not finite.
bool score_segments(const ModelConfig& config, const TensorSource& tensors, const Streams& streams,
                    const std::vector<PlanCandidate>& candidates, std::optional<double> ridge, ScoreLog& log,
                    ProcessGroup& group);

}  // namespace uniattn
