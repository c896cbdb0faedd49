#include "cuda/gated_activation.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_gated_activation(const GatedActivationArgs& args, cudaStream_t stream) {
  return launch_rows<GatedActivation>(args, fit_words(args.type, {args.gate, args.up, args.out}, {}), stream);
}

cudaError_t launch_gated_activation_backward(const GatedActivationBackwardArgs& args, cudaStream_t stream) {
  const bool by_words = fit_words(args.type, {args.grad, args.gate, args.up, args.dgate, args.dup}, {});
  return launch_rows<GatedActivationBackward>(args, by_words, stream);
}

}  // namespace uniattn::cuda
