// Loss of a model that need not fit into memory.
#pragma once
#include "model/decoder.h"
#include "train/evaluate.h"

namespace uniattn {

// What evaluate() gives, with the weights of one layer in memory at a time: hidden states of up to 65536 tokens pass
// through the layers together, and the model is read anew for the next ones. Each rank does so for its documents.
// `tensors` must have been checked (check_tensors). Throws Error when there is no supervised token, or for weights that
// are not finite.
Evaluation evaluate_layerwise(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                              at::ScalarType dtype, const std::vector<Document>& documents, at::Device device,
                              ProcessGroup& group);

}  // namespace uniattn
