#include "calibration/gram.h"

#include <ATen/ATen.h>

#include "uniattn/ops.h"

namespace uniattn {

Gram::Gram(int64_t features, int64_t targets)
    : ff(at::zeros({features, features}, at::kDouble)), fy(at::zeros({features, targets}, at::kDouble)) {}

void Gram::add(const at::Tensor& f, const at::Tensor& y) {
  const at::Tensor wide_f = f.to(at::kCPU, at::kDouble), wide_y = y.to(at::kCPU, at::kDouble);
  ff.addmm_(wide_f.t(), wide_f);
  fy.addmm_(wide_f.t(), wide_y);
  yy += wide_y.square().sum().item<double>();
}

void Gram::add_in_float32(const at::Tensor& f, const at::Tensor& y) {
  const at::Tensor columns = f.t().contiguous();
  ff += uniattn::linear(columns, columns).to(at::kCPU, at::kDouble);
  fy += uniattn::linear(columns, y.t().contiguous()).to(at::kCPU, at::kDouble);
  yy += y.square().sum(at::kDouble).item<double>();
}

void Gram::all_reduce(ProcessGroup& group) {
  group.all_reduce_sum(ff);
  group.all_reduce_sum(fy);
  yy = group.sum(yy);
}

double Gram::error(const at::Tensor& w) const {
  return yy - 2 * (w * fy).sum().item<double>() + (w * at::mm(ff, w)).sum().item<double>();
}

}  // namespace uniattn
