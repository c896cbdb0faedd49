// delta of all layers, added up on the leader's heads.
#pragma once
#include "cuda/params.h"
#include "cuda/tile.cuh"

namespace uniattn::cuda {

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
