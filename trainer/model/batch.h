// What a decoder reads: sequences one after the other, no padding.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace uniattn {

struct Batch {
  at::Tensor tokens;       // [T] int64
  at::Tensor labels;       // [T] int64: the token that position t predicts, -100 where there is no loss (the last of a
                           // sequence always)
  at::Tensor positions;    // [T] int64, from 0 in every sequence
  at::Tensor cu_seqlens;   // [sequences + 1] int32
  int64_t supervised = 0;  // labels that are not -100
};

inline Batch to_device(const Batch& batch, at::Device device) {
  return {batch.tokens.to(device), batch.labels.to(device), batch.positions.to(device), batch.cu_seqlens.to(device),
          batch.supervised};
}

}  // namespace uniattn
