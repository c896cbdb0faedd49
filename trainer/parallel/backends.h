// Connections of c10d.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

namespace uniattn {

// Connects `size` ranks, of which this one is `rank`, under a `name` of their own in the store: by NCCL for a GPU, by
// Gloo for the CPU. Throws Error when they cannot reach each other, or when this build has no NCCL and `device` is a
// GPU.
c10::intrusive_ptr<c10d::Backend> connect_backend(const c10::intrusive_ptr<c10d::Store>& store, const std::string& name,
                                                  int64_t rank, int64_t size, at::Device device,
                                                  std::chrono::milliseconds timeout);

}  // namespace uniattn
