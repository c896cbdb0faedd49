#include "cuda/rotary.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_rotary(const RotaryArgs& args, cudaStream_t stream) {
  const bool by_words =
      fit_words(args.type, {args.x, args.cos, args.sin, args.out}, {args.token_stride, args.head_stride, args.half});
  return launch_rows<Rotary>(args, by_words, stream);
}

}  // namespace uniattn::cuda
