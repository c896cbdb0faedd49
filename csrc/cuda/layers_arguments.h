// From the tensors of RMSNorm, rotary embedding and gated activation to what their kernels are given. ATen alone, on
// any device, so that tests use it as well. Tensors are contiguous, but for x of rotary, and live as long as the args.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <string_view>

#include "cuda/arguments.h"
#include "cuda/layers_params.h"

namespace uniattn::cuda {

inline RmsNormArgs rms_norm_args(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset,
                                 const at::Tensor& y, const at::Tensor& rstd) {
  return {.type = type_of(x),
          .rows = rstd.numel(),
          .width = weight.numel(),
          .eps = static_cast<float>(eps),
          .unit_offset = unit_offset,
          .x = x.const_data_ptr(),
          .weight = weight.const_data_ptr(),
          .y = y.data_ptr(),
          .rstd = rstd.data_ptr<float>()};
}

// Room for the weight's gradient summed over chunks of rows: float32 [chunks, width]. How rows are cut depends on their
// number alone, so results repeat; no chunk is empty.
inline at::Tensor norm_partial(const at::Tensor& x, int64_t rows) {
  constexpr int64_t kMaxChunks = 396;  // all at once on a device of 100 multiprocessors or more, three on each of 132
  const int64_t chunk_rows = std::max<int64_t>(1, (rows + kMaxChunks - 1) / kMaxChunks);
  return at::empty({(rows + chunk_rows - 1) / chunk_rows, x.size(-1)}, x.options().dtype(at::kFloat));
}

inline RmsNormBackwardArgs rms_norm_backward_args(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                                  const at::Tensor& rstd, bool unit_offset, const at::Tensor& dx,
                                                  const at::Tensor& partial) {
  const int64_t rows = rstd.numel(), chunks = partial.size(0);
  return {.type = type_of(x),
          .rows = rows,
          .width = weight.numel(),
          .chunks = chunks,
          .chunk_rows = chunks > 0 ? (rows + chunks - 1) / chunks : 0,
          .unit_offset = unit_offset,
          .grad = grad.const_data_ptr(),
          .x = x.const_data_ptr(),
          .weight = weight.const_data_ptr(),
          .rstd = rstd.const_data_ptr<float>(),
          .dx = dx.data_ptr(),
          .partial = partial.data_ptr<float>()};
}

inline RmsNormWeightArgs rms_norm_weight_args(const at::Tensor& partial, const at::Tensor& dweight) {
  return {type_of(dweight), partial.size(0), partial.size(1), partial.const_data_ptr<float>(), dweight.data_ptr()};
}

// x has contiguous heads.
inline RotaryArgs rotary_args(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                              const at::Tensor& out) {
  return {.type = type_of(x),
          .tokens = x.size(0),
          .heads = x.size(1),
          .half = x.size(2) / 2,
          .token_stride = x.stride(0),
          .head_stride = x.stride(1),
          .x = x.const_data_ptr(),
          .cos = cos.const_data_ptr<float>(),
          .sin = sin.const_data_ptr<float>(),
          .out = out.data_ptr()};
}

inline Activation parse_activation(std::string_view name) {
  return name == "silu" ? Activation::kSilu : Activation::kGeluTanh;
}

inline GatedActivationArgs gated_activation_args(const at::Tensor& gate, const at::Tensor& up,
                                                 std::string_view activation, const at::Tensor& out) {
  return {type_of(gate),         parse_activation(activation), gate.numel(),
          gate.const_data_ptr(), up.const_data_ptr(),          out.data_ptr()};
}

inline GatedActivationBackwardArgs gated_activation_backward_args(const at::Tensor& grad, const at::Tensor& gate,
                                                                  const at::Tensor& up, std::string_view activation,
                                                                  const at::Tensor& dgate, const at::Tensor& dup) {
  return {type_of(gate),         parse_activation(activation), gate.numel(),     grad.const_data_ptr(),
          gate.const_data_ptr(), up.const_data_ptr(),          dgate.data_ptr(), dup.data_ptr()};
}

}  // namespace uniattn::cuda
