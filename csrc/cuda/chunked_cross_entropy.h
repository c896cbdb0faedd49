// Linear + cross-entropy over chunks of supervised tokens: the products are ATen's, rows of logits are the kernels'.
// ATen alone, on any device, so that tests use it as well; `launch` is called with the kernels' args.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <tuple>

#include "composite/composite.h"
#include "cuda/arguments.h"
#include "cuda/layers_params.h"

namespace uniattn::cuda {

// h weight^T [rows, vocab], whose rows begin at multiples of 16 bytes whatever the vocabulary is.
inline at::Tensor aligned_logits(const at::Tensor& h, const at::Tensor& weight) {
  const int64_t vocabulary = weight.size(0), per_words = 16 / h.element_size();
  const int64_t stride = (vocabulary + per_words - 1) / per_words * per_words;
  const at::Tensor logits = at::empty({h.size(0), stride}, h.options()).narrow(1, 0, vocabulary);
  return logits.addmm_(h, weight.t(), /*beta=*/0);
}

// `tokens` [rows] are positions in `labels`; both contiguous.
inline Logits logits_args(const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& labels,
                          double softcap) {
  return {.rows = logits.size(0),
          .vocabulary = logits.size(1),
          .stride = logits.stride(0),
          .softcap = static_cast<float>(softcap),
          .data = logits.data_ptr(),
          .tokens = tokens.const_data_ptr<int64_t>(),
          .labels = labels.const_data_ptr<int64_t>()};
}

// dweight += dlogits^T h. In blocks of words: a product in another dtype than dweight's is a tensor of its own.
inline void add_weight_gradient(const at::Tensor& dweight, const at::Tensor& dlogits, const at::Tensor& h) {
  constexpr int64_t kBlockWords = 8192;
  if (dweight.scalar_type() == h.scalar_type()) {
    dweight.addmm_(dlogits.t(), h);
    return;
  }
  for (int64_t begin = 0; begin < dweight.size(0); begin += kBlockWords) {
    const int64_t words = std::min(kBlockWords, dweight.size(0) - begin);
    dweight.narrow(0, begin, words).add_(at::mm(dlogits.narrow(1, begin, words).t(), h));
  }
}

// Arguments and results are those of the operators in schema.cpp, checked but for the values of labels.
template <typename Launch>
std::tuple<at::Tensor, at::Tensor> chunked_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                                         const at::Tensor& labels, double softcap, int64_t chunk,
                                                         Launch launch) {
  const at::Tensor loss = at::zeros({hidden.size(0)}, hidden.options().dtype(at::kFloat)), lse = at::zeros_like(loss);
  const at::Tensor targets = labels.contiguous();
  for (const at::Tensor& tokens : composite::supervised_tokens(labels, weight.size(0)).split(chunk)) {
    if (tokens.numel() == 0) break;
    const at::Tensor logits = aligned_logits(hidden.index_select(0, tokens), weight);
    launch(CrossEntropyArgs{type_of(hidden), logits_args(logits, tokens, targets, softcap), loss.data_ptr<float>(),
                            lse.data_ptr<float>()});
  }
  return {loss, lse};
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor> chunked_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& hidden,
                                                                  const at::Tensor& weight, const at::Tensor& labels,
                                                                  const at::Tensor& lse, double softcap, int64_t chunk,
                                                                  Launch launch) {
  const at::Tensor dhidden = at::zeros(hidden.sizes(), hidden.options());
  const at::Tensor dweight = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
  const at::Tensor targets = labels.contiguous(), upstream = grad.contiguous(), sums = lse.contiguous();
  for (const at::Tensor& tokens : composite::supervised_tokens(labels, weight.size(0)).split(chunk)) {
    if (tokens.numel() == 0) break;
    const at::Tensor h = hidden.index_select(0, tokens), logits = aligned_logits(h, weight);
    launch(CrossEntropyBackwardArgs{type_of(hidden), logits_args(logits, tokens, targets, softcap),
                                    upstream.const_data_ptr<float>(), sums.const_data_ptr<float>()});
    dhidden.index_copy_(0, tokens, at::mm(logits, weight));
    add_weight_gradient(dweight, logits, h);
  }
  return {dhidden, dweight.to(weight.scalar_type())};
}

}  // namespace uniattn::cuda
