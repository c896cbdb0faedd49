// Tensors for kernels that run on emulated threads, and what is asked of their results.
#pragma once
#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "catch.h"

namespace emulated {

inline constexpr int64_t kMargin = 8;     // rows before and behind a tensor
inline constexpr double kUntouched = 77;  // what nobody may overwrite, not with NaN either

// Equal to x, with `around` before and behind it in memory.
inline at::Tensor surrounded(const at::Tensor& x, double around) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] += 2 * kMargin;
  return at::full(sizes, around, x.options()).narrow(0, kMargin, x.size(0)).copy_(x);
}

// Equal to x, and what a kernel reads beyond it is NaN.
inline at::Tensor poisoned(const at::Tensor& x) {
  return surrounded(x, NAN);
}

// A tensor like x for a kernel to fill.
inline at::Tensor unfilled(const at::Tensor& x) {
  return surrounded(at::full(x.sizes(), NAN, x.options()), kUntouched);
}

inline void check_only_filled_inside(const at::Tensor& x) {
  CHECK(x.isfinite().all().item<bool>());
  const int64_t margin = kMargin * x.stride(0);
  const at::Tensor whole = at::empty({0}, x.options()).set_(x.storage());
  CHECK(whole.narrow(0, 0, margin).eq(kUntouched).all().item<bool>());
  CHECK(whole.narrow(0, whole.numel() - margin, margin).eq(kUntouched).all().item<bool>());
}

// At most twice the error of the formula in the same dtype, in the mean and, but for a rounding, at worst.
inline void check_error(const at::Tensor& ours, const at::Tensor& plain, const at::Tensor& exact) {
  const at::Tensor error = (ours.to(at::kDouble) - exact).abs(), allowed = (plain.to(at::kDouble) - exact).abs();
  // Some roundings in float32, where kernels multiply in another order than the formula.
  const double epsilon = ours.scalar_type() == at::kFloat  ? 0x1p-19
                         : ours.scalar_type() == at::kHalf ? 0x1p-10
                                                           : 0x1p-7;
  const double rounding = epsilon * exact.abs().max().item<double>();
  const auto rms = [](const at::Tensor& x) { return x.square().mean().sqrt().item<double>(); };
  CHECK(rms(error) <= 2 * rms(allowed) + rounding / 8);
  CHECK(error.max().item<double>() <= 2 * allowed.max().item<double>() + rounding);
}

}  // namespace emulated
