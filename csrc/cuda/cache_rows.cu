#include "cuda/cache_rows.cuh"

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

namespace uniattn::cuda {
namespace {

template <Direction kDirection>
cudaError_t launch_rows(const CacheRowsArgs& args, cudaStream_t stream) {
  const auto both = reinterpret_cast<uintptr_t>(args.cache) | reinterpret_cast<uintptr_t>(args.rows);
  const bool whole = (both | static_cast<uintptr_t>(args.row_bytes)) % sizeof(Words) == 0;
  return whole ? launch<CacheRows<Words, kDirection>>(args, stream)
               : launch<CacheRows<uint8_t, kDirection>>(args, stream);
}

}  // namespace

cudaError_t launch_append_to_cache(const CacheRowsArgs& args, cudaStream_t stream) {
  return launch_rows<Direction::kIntoCache>(args, stream);
}

cudaError_t launch_read_cache(const CacheRowsArgs& args, cudaStream_t stream) {
  return launch_rows<Direction::kOutOfCache>(args, stream);
}

}  // namespace uniattn::cuda
