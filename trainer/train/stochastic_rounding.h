// float32 to bfloat16 without a bias: up or down by chance, so that small changes are not lost on average.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace uniattn {

// `values` [n] float32 as bfloat16. A value between two neighbours becomes either with a probability in proportion to
// how near it is. Chance is a hash of `stream` and of the element's number, from `first`: the same on every device and
// however the elements are divided into calls.
at::Tensor round_stochastically(const at::Tensor& values, uint64_t stream, int64_t first);

}  // namespace uniattn
