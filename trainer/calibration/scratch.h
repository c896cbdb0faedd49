// Tensors whose memory is a file: hidden states of all calibration tokens need not fit into memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace uniattn {

// A copy of a CPU tensor in an unnamed file in `directory`, mapped; the system writes it out and drops it from memory
// when memory is short. The file's space is free again with the tensor. Tensors on other devices are returned as they
// are. Throws Error when the file cannot be made or the disk is full.
at::Tensor to_scratch(const at::Tensor& tensor, const std::string& directory);

}  // namespace uniattn
