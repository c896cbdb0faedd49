#include "cuda/delta.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_delta(const DeltaArgs& args, cudaStream_t stream) {
  return args.type == Type::kFloat16 ? launch<Delta<Float16>>(args, stream) : launch<Delta<BFloat16>>(args, stream);
}

cudaError_t launch_delta_sum(const DeltaSumArgs& args, cudaStream_t stream) {
  return launch<DeltaSum>(args, stream);
}

}  // namespace uniattn::cuda
