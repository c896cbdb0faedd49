#include "inference/rotary_table.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace uniattn {

Sequences RotaryTable::rows(const std::vector<int64_t>& positions, const at::Tensor& cu_seqlens) {
  const int64_t needed = *std::max_element(positions.begin(), positions.end()) + 1;
  if (const int64_t held = cos_.defined() ? cos_.size(0) : 0; held < needed) {
    const int64_t count = std::max<int64_t>(needed, 2 * held);
    const Sequences all = make_sequences(config_, at::arange(count, at::kLong).to(device_), {});
    cos_ = all.cos, sin_ = all.sin;
  }
  const at::Tensor index = at::tensor(positions, at::kLong).to(device_);
  return {cu_seqlens, cos_.index_select(0, index), sin_.index_select(0, index)};
}

}  // namespace uniattn
