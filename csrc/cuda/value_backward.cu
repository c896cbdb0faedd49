#include "cuda/value_backward.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_value_backward(const ValueBackwardArgs& args, cudaStream_t stream) {
  return launch_for<ValueBackward>(args, stream);
}

}  // namespace uniattn::cuda
