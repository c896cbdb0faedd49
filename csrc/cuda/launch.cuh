// From a kernel's body to its launch. A Kernel has Args, Shared, grid(args) and run(args, shared).
#pragma once
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace uniattn::cuda {

template <typename Kernel>
__global__ void __launch_bounds__(kThreads) entry(const __grid_constant__ typename Kernel::Args args) {
  extern __shared__ uint4 memory[];
  Kernel::run(args, *reinterpret_cast<typename Kernel::Shared*>(memory));
}

template <typename Kernel>
cudaError_t launch(const typename Kernel::Args& args, cudaStream_t stream) {
  const Grid grid = Kernel::grid(args);
  if (grid.x == 0) return cudaSuccess;
  constexpr int kBytes = sizeof(typename Kernel::Shared);
  if constexpr (kBytes > 48 * 1024) {  // as much as there is without asking
    const cudaError_t error = cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
  }
  entry<Kernel><<<dim3(grid.x, grid.y), kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <typename T, template <typename, int> typename Kernel, typename Args>
cudaError_t launch_head_dim(const Args& args, cudaStream_t stream) {
  switch (args.pattern.head_dim) {
    case 64:
      return launch<Kernel<T, 64>>(args, stream);
    case 96:
      return launch<Kernel<T, 96>>(args, stream);
    case 128:
      return launch<Kernel<T, 128>>(args, stream);
    case 256:
      return launch<Kernel<T, 256>>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

// The kernel for the pattern's dtype and head_dim.
template <template <typename, int> typename Kernel, typename Args>
cudaError_t launch_for(const Args& args, cudaStream_t stream) {
  switch (args.pattern.type) {
    case Type::kFloat16:
      return launch_head_dim<Float16, Kernel>(args, stream);
    case Type::kBFloat16:
      return launch_head_dim<BFloat16, Kernel>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace uniattn::cuda
