#include "cuda/launch.cuh"
#include "cuda/score_backward.cuh"

namespace uniattn::cuda {
namespace {

template <typename T, int kHeadDim>
using QueryGradient = ScoreBackward<T, kHeadDim, Side::kQueries>;
template <typename T, int kHeadDim>
using KeyGradient = ScoreBackward<T, kHeadDim, Side::kKeys>;

}  // namespace

cudaError_t launch_superblock_backward(const SuperblockBackwardArgs& args, cudaStream_t stream) {
  if (const cudaError_t error = launch_for<QueryGradient>(args, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = launch_for<KeyGradient>(args, stream); error != cudaSuccess) return error;
  if (accumulates_dv(args.pattern.head_dim)) return cudaSuccess;
  return launch_value_backward({args.pattern, nullptr, args.layers[0].grad_out, args.dv}, stream);
}

}  // namespace uniattn::cuda
