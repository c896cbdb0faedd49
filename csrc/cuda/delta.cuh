// delta of one layer, and that of all layers added up on the leader's heads.
#pragma once
#include "cuda/params.h"
#include "cuda/tile.cuh"

namespace uniattn::cuda {

template <typename T>
struct Delta {
  using Args = DeltaArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return {ceil_divide(a.tokens, kOwnRows), a.heads}; }

  // A warp takes 16 tokens of a head, one at a time.
  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    const int head = block_y(), lane = thread_index() % 32;
    const int first = block_x() * kOwnRows + thread_index() / 32 * 16;
    for (int token = first; token < first + 16 && token < a.tokens; ++token) {
      const int64_t start = (static_cast<int64_t>(token) * a.heads + head) * a.head_dim / 2;
      float sum = 0;
      for (int i = lane; i < a.head_dim / 2; i += 32) {
        const uint32_t x = static_cast<const uint32_t*>(a.grad_out)[start + i];
        const uint32_t y = static_cast<const uint32_t*>(a.out)[start + i];
        sum += low_half<T>(x) * low_half<T>(y) + high_half<T>(x) * high_half<T>(y);
      }
      sum = warp_sum(sum);
      if (lane == 0) a.delta[static_cast<int64_t>(head) * a.tokens + token] = sum;
    }
  }
};

struct DeltaSum {
  using Args = DeltaSumArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return {ceil_divide(a.tokens, kThreads), a.heads}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    const int head = block_y(), token = block_x() * kThreads + thread_index();
    if (token >= a.tokens) return;
    float sum = 0;
    for (int64_t i = a.readers.begin[head]; i < a.readers.begin[head + 1]; ++i) {
      sum += a.delta[a.readers.order[i] * a.tokens + token];
    }
    a.sum[static_cast<int64_t>(head) * a.tokens + token] = sum;
  }
};

}  // namespace uniattn::cuda
