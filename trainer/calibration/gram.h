// Sufficient statistics of a least-squares problem Y = F W over token rows, in float64.
#pragma once
#include <ATen/core/Tensor.h>

#include "parallel/process_group.h"

namespace uniattn {

// A B in float64, at the processor's full speed.
at::Tensor product(const at::Tensor& a, const at::Tensor& b);

class Gram {
 public:
  Gram(int64_t features, int64_t targets);

  // Adds rows: f [rows, features], y [rows, targets], any floating dtype. Products are taken in `precision`: float32 is
  // several times faster, and good enough to compare candidates by.
  void add(const at::Tensor& f, const at::Tensor& y, at::ScalarType precision = at::kDouble);
  void all_reduce(ProcessGroup& group);

  // ||Y - F W||^2 for w [features, targets] float64.
  double error(const at::Tensor& w) const { return error(w, product(ff, w)); }

  // The same features against what F W leaves of Y.
  Gram residual(const at::Tensor& w) const;
  // The problem of `count` consecutive features alone.
  Gram block(int64_t begin, int64_t count) const;

  at::Tensor ff;  // [features, features]
  at::Tensor fy;  // [features, targets]
  double yy = 0;  // ||Y||^2

 private:
  double error(const at::Tensor& w, const at::Tensor& ffw) const;
};

}  // namespace uniattn
