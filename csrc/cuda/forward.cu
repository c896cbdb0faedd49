#include "cuda/forward.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_forward(const ForwardArgs& args, cudaStream_t stream) {
  return launch_for<Forward>(args, stream);
}

}  // namespace uniattn::cuda
