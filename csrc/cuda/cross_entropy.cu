#include "cuda/cross_entropy.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_cross_entropy(const CrossEntropyArgs& args, cudaStream_t stream) {
  return launch_for_type<CrossEntropy>(args, stream);
}

cudaError_t launch_cross_entropy_backward(const CrossEntropyBackwardArgs& args, cudaStream_t stream) {
  return launch_for_type<CrossEntropyBackward>(args, stream);
}

}  // namespace uniattn::cuda
