#include "cuda/rms_norm.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  return launch_rows<RmsNorm>(args, fit_words(args.type, {args.x, args.weight, args.y}, {args.width}), stream);
}

cudaError_t launch_rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream) {
  const bool by_words = fit_words(args.type, {args.grad, args.x, args.weight, args.dx, args.partial}, {args.width});
  return launch_rows<RmsNormBackward>(args, by_words, stream);
}

cudaError_t launch_rms_norm_weight(const RmsNormWeightArgs& args, cudaStream_t stream) {
  return launch_for_type<RmsNormWeight>(args, stream);
}

}  // namespace uniattn::cuda
