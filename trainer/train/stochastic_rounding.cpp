#include "train/stochastic_rounding.h"

#include <ATen/ATen.h>

namespace uniattn {
namespace {

// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) on every element, as int64 that wraps.
at::Tensor mixed(at::Tensor x) {
  const auto wrapped = [](uint64_t constant) { return static_cast<int64_t>(constant); };
  x = x.bitwise_xor(at::bitwise_right_shift(x, 30)).mul_(wrapped(0xBF58476D1CE4E5B9));
  x = x.bitwise_xor(at::bitwise_right_shift(x, 27)).mul_(wrapped(0x94D049BB133111EB));
  return x.bitwise_xor(at::bitwise_right_shift(x, 31));
}

}  // namespace

at::Tensor round_stochastically(const at::Tensor& values, uint64_t stream, int64_t first) {
  const at::Tensor numbers = at::arange(first, first + values.numel(), values.options().dtype(at::kLong));
  const at::Tensor chance = mixed(mixed(numbers).add_(static_cast<int64_t>(stream))).bitwise_and_(0xFFFF);
  // bfloat16 is the upper half of float32: a random lower half carries into it as often as the one there is large.
  const at::Tensor bits = values.view(at::kInt).add(chance.to(at::kInt)).bitwise_and_(~0xFFFF);
  const at::Tensor rounded = bits.view(at::kFloat);
  return at::where(at::isfinite(values), rounded, values).to(at::kBFloat16);
}

}  // namespace uniattn
