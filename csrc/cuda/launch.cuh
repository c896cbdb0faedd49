// From a kernel's body to its launch. A Kernel has Args, Shared, grid(args) and run(args, shared).
#pragma once
#include <algorithm>
#include <initializer_list>

#include "cuda/block.cuh"
#include "cuda/launch.h"
#include "cuda/vector.cuh"

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

// The kernel for args.type.
template <template <typename> typename Kernel, typename Args>
cudaError_t launch_for_type(const Args& args, cudaStream_t stream) {
  switch (args.type) {
    case Type::kFloat16:
      return launch<Kernel<Float16>>(args, stream);
    case Type::kBFloat16:
      return launch<Kernel<BFloat16>>(args, stream);
    case Type::kFloat32:
      return launch<Kernel<float>>(args, stream);
  }
  return cudaErrorInvalidValue;
}

// Whether rows that begin at multiples of each of `strides` elements from each of `addresses` can be taken by Words.
inline bool fit_words(Type type, std::initializer_list<const void*> addresses, std::initializer_list<int64_t> strides) {
  const int64_t size = type == Type::kFloat32 ? sizeof(float) : sizeof(uint16_t), words = sizeof(Words);
  return std::all_of(addresses.begin(), addresses.end(),
                     [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % words == 0; }) &&
         std::all_of(strides.begin(), strides.end(), [&](int64_t stride) { return stride * size % words == 0; });
}

template <template <typename, int> typename Kernel>
struct ByWords {
  template <typename T>
  using Of = Kernel<T, kPerWords<T>>;
};
template <template <typename, int> typename Kernel>
struct ByElement {
  template <typename T>
  using Of = Kernel<T, 1>;
};

// The kernel for args.type that takes rows by Words, or element by element.
template <template <typename, int> typename Kernel, typename Args>
cudaError_t launch_rows(const Args& args, bool by_words, cudaStream_t stream) {
  return by_words ? launch_for_type<ByWords<Kernel>::template Of>(args, stream)
                  : launch_for_type<ByElement<Kernel>::template Of>(args, stream);
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

// The tensor-core kernel for the pattern's dtype and head_dim.
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
