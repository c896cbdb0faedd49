#include "cuda/decode.cuh"

#include "cuda/launch.cuh"

namespace uniattn::cuda {

cudaError_t launch_decode(const DecodeLeaderArgs& args, cudaStream_t stream) {
  return launch_rows<DecodeLeader>(args, fit_words(args.type, {args.k_cache, args.v_cache}, {args.head_dim}), stream);
}

cudaError_t launch_decode(const DecodeFollowerArgs& args, cudaStream_t stream) {
  return launch_rows<DecodeFollower>(args, fit_words(args.type, {args.v_cache}, {args.head_dim}), stream);
}

cudaError_t launch_decode_merge(const DecodeMergeArgs& args, cudaStream_t stream) {
  return launch_for_type<DecodeMerge>(args, stream);
}

}  // namespace uniattn::cuda
