// Starts the CUDA kernels on a stream of the current device. Plain C++: no PyTorch, no device code.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/decode_params.h"
#include "cuda/layers_params.h"
#include "cuda/params.h"

namespace uniattn::cuda {

// Of training and prefill; decoding takes any.
inline constexpr bool has_kernels(int64_t head_dim) {
  return head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

// Each returns the error of the launch, cudaErrorInvalidValue for a pattern without kernels. Without tokens there is
// nothing to do.
cudaError_t launch_forward(const ForwardArgs& args, cudaStream_t stream);
cudaError_t launch_value_backward(const ValueBackwardArgs& args, cudaStream_t stream);
cudaError_t launch_superblock_backward(const SuperblockBackwardArgs& args, cudaStream_t stream);
cudaError_t launch_delta(const DeltaArgs& args, cudaStream_t stream);
cudaError_t launch_delta_sum(const DeltaSumArgs& args, cudaStream_t stream);

cudaError_t launch_decode(const DecodeLeaderArgs& args, cudaStream_t stream);
cudaError_t launch_decode(const DecodeFollowerArgs& args, cudaStream_t stream);
cudaError_t launch_decode_merge(const DecodeMergeArgs& args, cudaStream_t stream);
cudaError_t launch_append_to_cache(const CacheRowsArgs& args, cudaStream_t stream);
cudaError_t launch_read_cache(const CacheRowsArgs& args, cudaStream_t stream);

cudaError_t launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream);
// dx and the weight's partial gradients, and what these add up to.
cudaError_t launch_rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream);
cudaError_t launch_rms_norm_weight(const RmsNormWeightArgs& args, cudaStream_t stream);
cudaError_t launch_rotary(const RotaryArgs& args, cudaStream_t stream);
cudaError_t launch_gated_activation(const GatedActivationArgs& args, cudaStream_t stream);
cudaError_t launch_gated_activation_backward(const GatedActivationBackwardArgs& args, cudaStream_t stream);
cudaError_t launch_cross_entropy(const CrossEntropyArgs& args, cudaStream_t stream);
cudaError_t launch_cross_entropy_backward(const CrossEntropyBackwardArgs& args, cudaStream_t stream);

}  // namespace uniattn::cuda
