#include "cuda/decode.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {
namespace {

bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Words) == 0;
}

// Rows of whole Words are read by these, others element by element.
template <template <typename, int> typename Kernel, typename T, typename Args>
cudaError_t launch_for_rows(const Args& args, bool aligned, cudaStream_t stream) {
  return aligned && args.head_dim % kPerWords<T> == 0 ? launch<Kernel<T, kPerWords<T>>>(args, stream)
                                                      : launch<Kernel<T, 1>>(args, stream);
}

template <template <typename, int> typename Kernel, typename Args>
cudaError_t launch_for_type(const Args& args, bool aligned, cudaStream_t stream) {
  switch (args.type) {
    case Type::kFloat16:
      return launch_for_rows<Kernel, Float16>(args, aligned, stream);
    case Type::kBFloat16:
      return launch_for_rows<Kernel, BFloat16>(args, aligned, stream);
    case Type::kFloat32:
      return launch_for_rows<Kernel, float>(args, aligned, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_decode(const DecodeLeaderArgs& args, cudaStream_t stream) {
  return launch_for_type<DecodeLeader>(args, is_aligned(args.k_cache) && is_aligned(args.v_cache), stream);
}

cudaError_t launch_decode(const DecodeFollowerArgs& args, cudaStream_t stream) {
  return launch_for_type<DecodeFollower>(args, is_aligned(args.v_cache), stream);
}

cudaError_t launch_decode_merge(const DecodeMergeArgs& args, cudaStream_t stream) {
  switch (args.type) {
    case Type::kFloat16:
      return launch<DecodeMerge<Float16>>(args, stream);
    case Type::kBFloat16:
      return launch<DecodeMerge<BFloat16>>(args, stream);
    case Type::kFloat32:
      return launch<DecodeMerge<float>>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace uniattn::cuda
