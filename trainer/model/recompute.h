// Activation checkpointing: a part of the forward pass that is computed once more in the backward pass, instead of
// keeping what its gradient needs.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace uniattn {

// A pure function: its outputs depend on its inputs and on constants, and it gives the same bits each time.
using TensorFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>& inputs)>;

// function(inputs), keeping the inputs alone for the backward pass. Every tensor that is to receive a gradient is among
// the inputs, none of which may be undefined; no tensor is returned twice. It can be differentiated once.
std::vector<at::Tensor> recompute(TensorFunction function, const std::vector<at::Tensor>& inputs);

}  // namespace uniattn
