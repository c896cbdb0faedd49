#include "calibration/gram.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "uniattn/ops.h"

namespace uniattn {
namespace {

constexpr int64_t kPanel = 256;

// A B^T on the CPU, computed where and in what they are.
at::Tensor row_products(const at::Tensor& a, const at::Tensor& b) {
  return uniattn::linear(a, b).to(at::kCPU, at::kDouble);
}

}  // namespace

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  return uniattn::linear(a, b.t());
}

Gram::Gram(int64_t features, int64_t targets)
    : ff(at::zeros({features, features}, at::kDouble)), fy(at::zeros({features, targets}, at::kDouble)) {}

void Gram::add(const at::Tensor& f, const at::Tensor& y, at::ScalarType precision) {
  const at::Tensor features = f.to(precision).t().contiguous(), targets = y.to(precision).t().contiguous();
  // F^T F is symmetric: each panel of columns from its diagonal down, the rest mirrored.
  for (int64_t begin = 0; begin < ff.size(0); begin += kPanel) {
    const int64_t width = std::min(kPanel, ff.size(0) - begin), below = begin + width, rest = ff.size(0) - below;
    at::Tensor panel = ff.narrow(0, begin, width + rest).narrow(1, begin, width);
    panel += row_products(features.narrow(0, begin, width + rest), features.narrow(0, begin, width));
    ff.narrow(0, begin, width).narrow(1, below, rest).copy_(panel.narrow(0, width, rest).t());
  }
  fy += row_products(features, targets);
  yy += targets.square().sum(at::kDouble).item<double>();
}

void Gram::all_reduce(ProcessGroup& group) {
  group.all_reduce_sum(ff);
  group.all_reduce_sum(fy);
  yy = group.sum(yy);
}

double Gram::error(const at::Tensor& w, const at::Tensor& ffw) const {
  return yy - 2 * (w * fy).sum().item<double>() + (w * ffw).sum().item<double>();
}

Gram Gram::residual(const at::Tensor& w) const {
  const at::Tensor ffw = product(ff, w);
  Gram result = *this;
  result.fy = fy - ffw;
  result.yy = error(w, ffw);
  return result;
}

Gram Gram::block(int64_t begin, int64_t count) const {
  Gram result(0, fy.size(1));
  result.ff = ff.narrow(0, begin, count).narrow(1, begin, count);
  result.fy = fy.narrow(0, begin, count);
  result.yy = yy;
  return result;
}

}  // namespace uniattn
