// Cosines and sines of the rotary embedding, kept for all positions that were asked for.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/layer.h"

namespace uniattn {

class RotaryTable {
 public:
  RotaryTable(const ModelConfig& config, at::Device device) : config_(config), device_(device) {}

  // Of `positions`, with the pack's bounds. Grows to the largest position.
  Sequences rows(const std::vector<int64_t>& positions, const at::Tensor& cu_seqlens);

 private:
  const ModelConfig& config_;
  at::Device device_;
  at::Tensor cos_, sin_;  // [positions, head_dim / 2]
};

}  // namespace uniattn
