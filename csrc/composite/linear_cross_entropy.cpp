// Linear + cross-entropy over chunks of supervised tokens: the logits of the whole batch never exist, and tokens
// without a label cost nothing.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "composite/composite.h"

namespace uniattn::composite {
static constexpr int64_t kIgnoredLabel = -100;

Tensor supervised_tokens(const Tensor& labels, int64_t vocabulary) {
  const Tensor rows = labels.ne(kIgnoredLabel).nonzero().squeeze(1);
  if (rows.numel() == 0) return rows;
  const auto [low, high] = at::aminmax(labels.index_select(0, rows));
  const int64_t lowest = low.item<int64_t>(), highest = high.item<int64_t>();
  TORCH_CHECK_VALUE(lowest >= 0 && highest < vocabulary, "labels must be ", kIgnoredLabel, " (ignored) or in [0, ",
                    vocabulary, "), got ", lowest < 0 ? lowest : highest);
  return rows;
}

namespace {

// softcap(h W^T) in the accumulation dtype: [rows, vocab].
Tensor capped_logits(const Tensor& h, const Tensor& weight, double softcap) {
  Tensor logits = at::linear(h, weight).to(accumulation_type(h.scalar_type()));
  if (softcap > 0) logits.div_(softcap).tanh_().mul_(softcap);
  return logits;
}

}  // namespace

std::tuple<Tensor, Tensor> linear_cross_entropy_forward(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& labels, double softcap, int64_t chunk) {
  check_linear_cross_entropy(hidden, weight, labels, chunk);
  Tensor loss = at::zeros({hidden.size(0)}, hidden.options().dtype(accumulation_type(hidden.scalar_type())));
  Tensor lse = at::zeros_like(loss);
  for (const Tensor& rows : supervised_tokens(labels, weight.size(0)).split(chunk)) {
    if (rows.numel() == 0) break;
    const Tensor logits = capped_logits(hidden.index_select(0, rows), weight, softcap);
    const Tensor row_lse = logits.logsumexp(1);
    const Tensor target = logits.gather(1, labels.index_select(0, rows).unsqueeze(1)).squeeze(1);
    lse.index_copy_(0, rows, row_lse);
    loss.index_copy_(0, rows, row_lse - target);
  }
  return {loss, lse};
}

std::tuple<Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                                         const Tensor& labels, const Tensor& lse, double softcap,
                                                         int64_t chunk) {
  check_linear_cross_entropy_backward(grad, hidden, weight, labels, lse, chunk);
  const auto type = hidden.scalar_type();
  Tensor dhidden = at::zeros(hidden.sizes(), hidden.options());
  Tensor dweight = at::zeros(weight.sizes(), weight.options().dtype(accumulation_type(type)));
  for (const Tensor& rows : supervised_tokens(labels, weight.size(0)).split(chunk)) {
    if (rows.numel() == 0) break;
    const Tensor h = hidden.index_select(0, rows);
    const Tensor logits = capped_logits(h, weight, softcap);
    Tensor dlogits = (logits - lse.index_select(0, rows).unsqueeze(1)).exp_();
    const Tensor target = labels.index_select(0, rows).unsqueeze(1);
    dlogits.scatter_add_(1, target, at::full_like(target, -1, dlogits.options()));
    if (softcap > 0) dlogits.mul_(1 - (logits / softcap).square_());
    dlogits = dlogits.mul_(grad.index_select(0, rows).unsqueeze(1)).to(type);
    dhidden.index_copy_(0, rows, at::mm(dlogits, weight));
    if (type == dweight.scalar_type()) {
      dweight.addmm_(dlogits.t(), h);
    } else {
      dweight.add_(at::mm(dlogits.t(), h));
    }
  }
  return {dhidden, dweight.to(weight.scalar_type())};
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy_forward", linear_cross_entropy_forward);
  m.impl("linear_cross_entropy_backward", linear_cross_entropy_backward);
}

}  // namespace uniattn::composite
