#include "calibration/rows.h"

#include <ATen/ATen.h>

#include "model/layer.h"

namespace uniattn {

at::Tensor scaled(const FitRows& rows, const at::Tensor& values) {
  return rows.scale.defined() ? values * rows.scale : values;
}

at::Tensor branch_heads(const FitRows& rows, const at::Tensor& v, const std::vector<int64_t>& head_map) {
  if (!rows.probs) return rows.heads;
  const at::Tensor& q = rows.probs->q;
  const at::Tensor values = uniattn::linear(rows.x, v).view({q.size(0), -1, q.size(2)});
  return attend(*rows.probs, values, head_map_tensor(head_map, q.device())).flatten(1);
}

at::Tensor branch_output(const FitRows& rows, const Branch& branch) {
  return branch_output(rows, branch, branch.o.defined() ? branch_heads(rows, branch.v, branch.head_map) : at::Tensor());
}

at::Tensor branch_output(const FitRows& rows, const Branch& branch, const at::Tensor& heads) {
  at::Tensor out = at::zeros_like(rows.target);
  if (branch.o.defined()) out = uniattn::linear(heads, branch.o);
  if (branch.compensation.defined()) out = out + uniattn::linear(rows.x, branch.compensation);
  return scaled(rows, out);
}

}  // namespace uniattn
