// CPU kernel of linear + cross-entropy for float32 and bfloat16: matrix products over blocks of tokens small
// enough that the softmax finds their logits in cache.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "composite/composite.h"
#include "cpu/kernels.h"
#include "cpu/types.h"
#include "uniattn/ops.h"

namespace uniattn::cpu {
namespace {

using at::Tensor;

constexpr int64_t kBlockRows = 512;
constexpr int64_t kBlockWords = 8192;

LogitsArgs logits_args(const Tensor& logits, double softcap, const Tensor& labels, const Tensor& lse) {
  return {logits.data_ptr(),
          logits.size(0),
          logits.size(1),
          type_of(logits),
          static_cast<float>(softcap),
          labels.const_data_ptr<int64_t>(),
          lse.data_ptr<float>()};
}

// Calls work(args of some rows, first row) on all threads.
template <class F>
void for_row_blocks(const LogitsArgs& args, F work) {
  const int64_t size = args.type == Type::kFloat32 ? 4 : 2;
  at::parallel_for(0, args.rows, 1, [&](int64_t begin, int64_t end) {
    LogitsArgs part = args;
    part.logits = static_cast<char*>(args.logits) + begin * args.vocabulary * size;
    part.rows = end - begin;
    part.labels += begin;
    part.lse += begin;
    work(part, begin);
  });
}

std::tuple<Tensor, Tensor> linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& labels, double softcap, int64_t chunk) {
  check_linear_cross_entropy(hidden, weight, labels, chunk);
  if (!is_supported(hidden)) return composite::linear_cross_entropy_forward(hidden, weight, labels, softcap, chunk);
  Tensor loss = at::zeros({hidden.size(0)}, hidden.options().dtype(at::kFloat)), lse = at::zeros_like(loss);
  const Tensor supervised = composite::supervised_tokens(labels, weight.size(0));
  for (const Tensor& rows : supervised.split(std::min(chunk, kBlockRows))) {
    if (rows.numel() == 0) break;
    const Tensor logits = uniattn::linear(hidden.index_select(0, rows), weight);
    const Tensor row_labels = labels.index_select(0, rows);
    const Tensor row_loss = at::empty({rows.numel()}, loss.options()), row_lse = at::empty_like(row_loss);
    for_row_blocks(logits_args(logits, softcap, row_labels, row_lse), [&](const LogitsArgs& args, int64_t begin) {
      kernels().cross_entropy_forward(args, row_loss.data_ptr<float>() + begin);
    });
    loss.index_copy_(0, rows, row_loss);
    lse.index_copy_(0, rows, row_lse);
  }
  return {loss, lse};
}

std::tuple<Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                         const Tensor& labels, const Tensor& lse, double softcap,
                                                         int64_t chunk) {
  check_linear_cross_entropy_backward(grad, hidden, weight, labels, lse, chunk);
  if (!is_supported(hidden)) {
    return composite::linear_cross_entropy_backward(grad, hidden, weight, labels, lse, softcap, chunk);
  }
  Tensor dhidden = at::zeros(hidden.sizes(), hidden.options());
  Tensor dweight = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
  const Tensor supervised = composite::supervised_tokens(labels, weight.size(0));
  for (const Tensor& rows : supervised.split(std::min(chunk, kBlockRows))) {
    if (rows.numel() == 0) break;
    const Tensor h = hidden.index_select(0, rows);
    const Tensor logits = uniattn::linear(h, weight);
    const Tensor row_labels = labels.index_select(0, rows), row_lse = lse.index_select(0, rows);
    const Tensor row_grad = grad.index_select(0, rows);
    for_row_blocks(logits_args(logits, softcap, row_labels, row_lse), [&](const LogitsArgs& args, int64_t begin) {
      kernels().cross_entropy_backward(args, row_grad.const_data_ptr<float>() + begin);
    });
    dhidden.index_copy_(0, rows, uniattn::linear(logits, weight.t()));
    // By blocks: the product, and the float32 copy that adding another dtype makes of it, are as large as the weight.
    for (int64_t begin = 0; begin < weight.size(0); begin += kBlockWords) {
      const int64_t words = std::min(kBlockWords, weight.size(0) - begin);
      dweight.narrow(0, begin, words).add_(uniattn::linear(logits.narrow(1, begin, words).t(), h.t()));
    }
  }
  return {dhidden, dweight.to(weight.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, CPU, m) {
  m.impl("linear_cross_entropy_forward", linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
}

}  // namespace uniattn::cpu
