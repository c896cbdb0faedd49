// The CUDA kernels of linear + cross-entropy, compiled for the host and run on emulated threads in the operator's own
// chunks, against the plain formula.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "cuda/chunked_cross_entropy.h"
#include "cuda/cross_entropy.cuh"
#include "emulated_tensors.h"

using at::Tensor;
namespace cuda = uniattn::cuda;
using cuda::BFloat16;
using cuda::Float16;
using cuda::emulation::WarpOrder;

namespace {

struct Case {
  Tensor hidden, weight, labels, grad;
  double softcap;
  int64_t chunk;
};

Case make_case(int64_t vocabulary, double softcap, int64_t chunk, at::ScalarType dtype, int64_t width = 16) {
  at::manual_seed(0);
  constexpr int64_t kTokens = 9;
  const Tensor labels = at::randint(vocabulary, {kTokens}, at::kLong);
  labels[0] = vocabulary - 1, labels[2] = -100, labels[3] = -100, labels[kTokens - 1] = -100;
  return {at::randn({kTokens, width}).to(dtype),
          at::randn({vocabulary, width}).to(dtype),
          labels,
          at::randn({kTokens}),
          softcap,
          chunk};
}

// Loss, lse, and the gradients of hidden and weight.
using Results = std::vector<Tensor>;

// What lies between rows is NaN.
template <typename T>
void poison(const cuda::Logits& logits) {
  for (int64_t row = 0; row < logits.rows; ++row) {
    for (int64_t column = logits.vocabulary; column < logits.stride; ++column) {
      static_cast<T*>(logits.data)[row * logits.stride + column] = NAN;
    }
  }
}

template <typename T>
Results run_kernels(const Case& c, WarpOrder order) {
  const auto forward = [&](const cuda::CrossEntropyArgs& args) {
    poison<T>(args.logits);
    cuda::emulation::run<cuda::CrossEntropy<T>>(args, cuda::kThreads, order);
  };
  const auto backward = [&](const cuda::CrossEntropyBackwardArgs& args) {
    poison<T>(args.logits);
    cuda::emulation::run<cuda::CrossEntropyBackward<T>>(args, cuda::kThreads, order);
  };
  const auto [loss, lse] = cuda::chunked_cross_entropy(c.hidden, c.weight, c.labels, c.softcap, c.chunk, forward);
  const auto [dhidden, dweight] =
      cuda::chunked_cross_entropy_backward(c.grad, c.hidden, c.weight, c.labels, lse, c.softcap, c.chunk, backward);
  return {loss, lse, dhidden, dweight};
}

// The formula in `dtype`, differentiated by autograd.
Results expected(const Case& c, at::ScalarType dtype) {
  const auto leaf = [&](const Tensor& x) { return x.to(dtype).detach().clone().set_requires_grad(true); };
  const Tensor hidden = leaf(c.hidden), weight = leaf(c.weight), ignored = c.labels.eq(-100);
  Tensor logits = at::mm(hidden, weight.t());
  if (c.softcap > 0) logits = (logits / c.softcap).tanh() * c.softcap;
  const Tensor lse = logits.logsumexp(1), target = logits.gather(1, c.labels.clamp_min(0).unsqueeze(1)).squeeze(1);
  const Tensor loss = (lse - target).masked_fill(ignored, 0);
  const auto gradients = torch::autograd::grad({loss}, {hidden, weight}, {c.grad.to(dtype)});
  return {loss.detach(), lse.detach().masked_fill(ignored, 0), gradients[0], gradients[1]};
}

template <typename T>
void check_case(const Case& c) {
  CAPTURE(c.weight.sizes(), c.softcap, c.chunk);
  const Results ours = run_kernels<T>(c, WarpOrder::kForward), again = run_kernels<T>(c, WarpOrder::kBackward);
  const Results plain = expected(c, c.hidden.scalar_type()), exact = expected(c, at::kDouble);
  for (size_t i = 0; i < ours.size(); ++i) {
    CHECK(ours[i].isfinite().all().item<bool>());
    emulated::check_error(ours[i], plain[i], exact[i]);
    CHECK(at::equal(ours[i], again[i]));
  }
}

template <typename T>
void check_cases() {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  for (const int64_t vocabulary : {1, 7, 64, 100, 1030, 4099}) {
    check_case<T>(make_case(vocabulary, 0, 4, dtype));
    check_case<T>(make_case(vocabulary, 2.0, 1024, dtype));
  }
  check_case<T>(make_case(33, 30.0, 1, dtype));
}

}  // namespace

TEST_CASE("emulated CUDA cross-entropy equals the formula", "[cuda]") {
  check_cases<float>();
  check_cases<BFloat16>();
  check_cases<Float16>();
}

TEST_CASE("emulated CUDA cross-entropy takes logits that are far apart", "[cuda]") {
  Case c = make_case(1030, 0, 1024, at::kFloat);
  c.hidden.mul_(1000);
  check_case<float>(c);
  c.softcap = 50;
  check_case<float>(c);
}

TEST_CASE("emulated CUDA cross-entropy adds up the weight's gradient over blocks of words", "[cuda]") {
  check_case<BFloat16>(make_case(8192 + 5, 0, 5, at::kBFloat16, 3));
}

TEST_CASE("emulated CUDA cross-entropy of an empty hidden state finds all words as likely", "[cuda]") {
  const Case c = make_case(12, 0, 4, at::kFloat, 0);
  const Results ours = run_kernels<float>(c, WarpOrder::kForward);
  CHECK(at::allclose(ours[0], at::full({9}, std::log(12.)).masked_fill(c.labels.eq(-100), 0)));
}

TEST_CASE("emulated CUDA cross-entropy without supervised tokens launches nothing", "[cuda]") {
  Case c = make_case(12, 0, 4, at::kFloat);
  c.labels.fill_(-100);
  for (const Tensor& x : run_kernels<float>(c, WarpOrder::kForward)) CHECK_FALSE(x.any().item<bool>());
}

TEST_CASE("CUDA cross-entropy refuses labels outside the vocabulary", "[cuda]") {
  for (const int64_t label : {12, -1, -101}) {
    Case c = make_case(12, 0, 4, at::kFloat);
    c.labels[5] = label;
    CHECK_THROWS_WITH(run_kernels<float>(c, WarpOrder::kForward),
                      contains("labels must be -100 (ignored) or in [0, 12)"));
  }
}

TEST_CASE("emulated CUDA cross-entropy reaches rows behind 2^31 elements", "[cuda]") {
  at::manual_seed(0);
  constexpr int64_t kRows = (int64_t{1} << 31) / 4096 + 2;  // of which only the last few are ever touched
  const Tensor near = at::randn({1, 4096}).to(at::kBFloat16), far = at::empty({kRows, 4096}, near.options());
  far.narrow(0, kRows - 1, 1).copy_(near);
  const Tensor tokens = at::zeros({kRows}, at::kLong), labels = at::full({1}, 4000, at::kLong), grad = at::ones({1});
  const auto run = [&](const Tensor& logits) {
    const Tensor loss = at::zeros({1}), lse = at::zeros({1});
    const auto args = cuda::logits_args(logits, tokens, labels, 0);
    cuda::emulation::Block block(cuda::kThreads);
    const int blocks = cuda::CrossEntropy<BFloat16>::grid({cuda::Type::kBFloat16, args, nullptr, nullptr}).x;
    const cuda::emulation::Position last{static_cast<int>((logits.size(0) - 1) % blocks), 0, blocks};
    cuda::emulation::run_block<cuda::CrossEntropy<BFloat16>>(
        block, {cuda::Type::kBFloat16, args, loss.data_ptr<float>(), lse.data_ptr<float>()}, last, WarpOrder::kForward);
    cuda::emulation::run_block<cuda::CrossEntropyBackward<BFloat16>>(
        block, {cuda::Type::kBFloat16, args, grad.const_data_ptr<float>(), lse.const_data_ptr<float>()}, last,
        WarpOrder::kForward);
    return std::pair(loss.item<float>(), logits.narrow(0, logits.size(0) - 1, 1));
  };
  const auto [far_loss, far_gradient] = run(far);
  const auto [near_loss, near_gradient] = run(near.clone());
  CHECK(far_loss == near_loss);
  CHECK(at::equal(far_gradient, near_gradient));
}
