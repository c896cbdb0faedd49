// Blocks of four warps, which every kernel runs in: how many there are, and what their threads have together.
#pragma once
#include <algorithm>

#include "cuda/device.cuh"

namespace uniattn::cuda {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps;

inline int ceil_divide(int a, int b) {
  return (a + b - 1) / b;
}

// Blocks of threads of one launch.
struct Grid {
  int x, y;
};

// For blocks that take rows block_x(), block_x() + blocks_x(), …
inline Grid grid_of_rows(int64_t rows) {
  return {static_cast<int>(std::min<int64_t>(rows, 1 << 16)), 1};
}

// For one thread per item, that of thread_number().
inline Grid grid_of_items(int64_t items) {
  return {static_cast<int>((items + kThreads - 1) / kThreads), 1};
}
UNIATTN_DEVICE int64_t thread_number() {
  return static_cast<int64_t>(block_x()) * kThreads + thread_index();
}

// Sum, or maximum, over the threads of a warp.
UNIATTN_DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
UNIATTN_DEVICE float warp_maximum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// What each warp brings to a result of the block.
struct BlockShared {
  float of_warp[kWarps];
};

template <typename F>
UNIATTN_DEVICE float combine_warps(float of_own_warp, BlockShared& shared, F f) {
  if (thread_index() % 32 == 0) shared.of_warp[thread_index() / 32] = of_own_warp;
  sync_block();
  float result = shared.of_warp[0];
  for (int i = 1; i < kWarps; ++i) result = f(result, shared.of_warp[i]);
  sync_block();  // the next result goes to the same place
  return result;
}

// Sum, or maximum, over the threads of a block; all get the same bits.
UNIATTN_DEVICE float block_sum(float x, BlockShared& shared) {
  return combine_warps(warp_sum(x), shared, [](float a, float b) { return a + b; });
}
UNIATTN_DEVICE float block_maximum(float x, BlockShared& shared) {
  return combine_warps(warp_maximum(x), shared, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace uniattn::cuda
