// The CUDA kernels of RMSNorm, rotary embedding and gated activation, compiled for the host and run on emulated
// threads, against the plain formulas.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "cuda/gated_activation.cuh"
#include "cuda/layers_arguments.h"
#include "cuda/rms_norm.cuh"
#include "cuda/rotary.cuh"
#include "emulated_tensors.h"

using at::Tensor;
namespace cuda = uniattn::cuda;
using cuda::BFloat16;
using cuda::Float16;
using cuda::kPerWords;
using cuda::emulation::WarpOrder;
using emulated::poisoned;
using emulated::unfilled;

namespace {

using Tensors = std::vector<Tensor>;

template <typename T>
constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;

template <typename Kernel>
void launch(const typename Kernel::Args& args, WarpOrder order) {
  cuda::emulation::run<Kernel>(args, cuda::kThreads, order);
}

Tensor draw(at::IntArrayRef sizes, at::ScalarType dtype) {
  return poisoned(at::randn(sizes).to(dtype));
}

Tensor leaf(const Tensor& x, at::ScalarType dtype) {
  return x.to(dtype).detach().clone().set_requires_grad(true);
}

// Results of run(order) against the formula, expected(dtype): all of them, and that the order of warps changes no bit.
template <typename Run, typename Expected>
void check_results(at::ScalarType dtype, Run run, Expected expected) {
  const Tensors ours = run(WarpOrder::kForward), again = run(WarpOrder::kBackward);
  const Tensors plain = expected(dtype), exact = expected(at::kDouble);
  for (size_t i = 0; i < ours.size(); ++i) {
    emulated::check_only_filled_inside(ours[i]);
    emulated::check_error(ours[i], plain[i], exact[i]);
    CHECK(at::equal(ours[i], again[i]));
  }
}

// y, rstd, dx and dweight.
template <typename T, int kVector>
Tensors run_rms_norm(const Tensor& x, const Tensor& weight, const Tensor& grad, bool unit_offset, WarpOrder order) {
  const Tensor y = unfilled(x), dx = unfilled(x), dweight = unfilled(weight);
  const Tensor rstd = unfilled(at::empty({x.size(0)}, at::kFloat));
  const Tensor partial = unfilled(cuda::norm_partial(x, x.size(0)));
  launch<cuda::RmsNorm<T, kVector>>(cuda::rms_norm_args(x, weight, 1e-5, unit_offset, y, rstd), order);
  launch<cuda::RmsNormBackward<T, kVector>>(
      cuda::rms_norm_backward_args(grad, x, weight, rstd, unit_offset, dx, partial), order);
  emulated::check_only_filled_inside(partial);
  launch<cuda::RmsNormWeight<T>>(cuda::rms_norm_weight_args(partial, dweight), order);
  return {y, rstd, dx, dweight};
}

template <typename T, int kVector>
void check_rms_norm(int64_t rows, int64_t width, bool unit_offset) {
  CAPTURE(rows, width, unit_offset);
  at::manual_seed(0);
  const Tensor x = draw({rows, width}, kType<T>), grad = draw({rows, width}, kType<T>);
  const Tensor weight = draw({width}, kType<T>);
  const auto run = [&](WarpOrder order) { return run_rms_norm<T, kVector>(x, weight, grad, unit_offset, order); };
  check_results(kType<T>, run, [&](at::ScalarType dtype) {
    const Tensor leaf_x = leaf(x, dtype), leaf_weight = leaf(weight, dtype);
    const Tensor rstd = (leaf_x.square().mean(1) + 1e-5).rsqrt();
    const Tensor y = leaf_x * rstd.unsqueeze(1) * (unit_offset ? leaf_weight + 1 : leaf_weight);
    const auto gradients = torch::autograd::grad({y}, {leaf_x, leaf_weight}, {grad.to(dtype)});
    return Tensors{y.detach(), rstd.detach(), gradients[0], gradients[1]};
  });
}

template <typename T>
void check_rms_norms() {
  check_rms_norm<T, 1>(2, 1, false);
  check_rms_norm<T, 1>(5, 7, true);
  check_rms_norm<T, 1>(3, 131, false);
  check_rms_norm<T, kPerWords<T>>(3, 64, false);
  check_rms_norm<T, kPerWords<T>>(1, 104, true);
  check_rms_norm<T, kPerWords<T>>(4, 4104, false);
}

template <typename T, int kVector>
void check_rotary(const Tensor& x) {
  CAPTURE(x.sizes(), x.strides());
  const int64_t half = x.size(2) / 2;
  const Tensor angle = at::randn({x.size(0), half}), cos = poisoned(angle.cos()), sin = poisoned(angle.sin());
  const auto run = [&](WarpOrder order) {
    const Tensor out = unfilled(x);
    launch<cuda::Rotary<T, kVector>>(cuda::rotary_args(x, cos, sin, out), order);
    return Tensors{out};
  };
  check_results(kType<T>, run, [&](at::ScalarType dtype) {
    const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor a = x.narrow(2, 0, half).to(wide), b = x.narrow(2, half, half).to(wide);
    const Tensor c = cos.unsqueeze(1).to(wide), s = sin.unsqueeze(1).to(wide);
    return Tensors{at::cat({a * c - b * s, b * c + a * s}, 2).to(dtype)};
  });
}

template <typename T>
void check_rotaries() {
  at::manual_seed(0);
  check_rotary<T, 1>(draw({3, 1, 2}, kType<T>));
  check_rotary<T, 1>(draw({5, 3, 14}, kType<T>));
  check_rotary<T, kPerWords<T>>(draw({1, 2, 64}, kType<T>));
  check_rotary<T, kPerWords<T>>(draw({9, 5, 96}, kType<T>));
  check_rotary<T, kPerWords<T>>(draw({2, 1, 256}, kType<T>));
  check_rotary<T, kPerWords<T>>(draw({4, 7, 128}, kType<T>).narrow(1, 2, 3));  // queries among queries, keys and values
  check_rotary<T, kPerWords<T>>(draw({2, 6, 80}, kType<T>).transpose(0, 1));   // heads before tokens
  check_rotary<T, 1>(draw({6, 2, 66}, kType<T>).narrow(2, 1, 64));
}

template <typename T, int kVector>
void check_gated_activation(const Tensor& gate, std::string_view activation) {
  CAPTURE(gate.numel(), activation);
  const Tensor up = draw(gate.sizes(), kType<T>), grad = draw(gate.sizes(), kType<T>);
  const auto run = [&](WarpOrder order) {
    const Tensor out = unfilled(gate), dgate = unfilled(gate), dup = unfilled(up);
    launch<cuda::GatedActivation<T, kVector>>(cuda::gated_activation_args(gate, up, activation, out), order);
    launch<cuda::GatedActivationBackward<T, kVector>>(
        cuda::gated_activation_backward_args(grad, gate, up, activation, dgate, dup), order);
    return Tensors{out, dgate, dup};
  };
  check_results(kType<T>, run, [&](at::ScalarType dtype) {
    const Tensor leaf_gate = leaf(gate, dtype), leaf_up = leaf(up, dtype);
    const Tensor out = (activation == "silu" ? at::silu(leaf_gate) : at::gelu(leaf_gate, "tanh")) * leaf_up;
    const auto gradients = torch::autograd::grad({out}, {leaf_gate, leaf_up}, {grad.to(dtype)});
    return Tensors{out.detach(), gradients[0], gradients[1]};
  });
}

template <typename T>
void check_gated_activations() {
  at::manual_seed(0);
  for (const auto activation : {"silu", "gelu_tanh"}) {
    for (const int64_t count : {1, 7, 64, 100, 4101}) {
      check_gated_activation<T, kPerWords<T>>(draw({count}, kType<T>), activation);
      check_gated_activation<T, 1>(draw({count}, kType<T>), activation);
    }
    check_gated_activation<T, kPerWords<T>>(
        poisoned(at::tensor({-1e4, -200., -90., -20., 0., 20., 90., 1e4}).to(kType<T>)), activation);
  }
}

}  // namespace

TEST_CASE("emulated CUDA RMSNorm equals the formula", "[cuda]") {
  check_rms_norms<float>();
  check_rms_norms<BFloat16>();
  check_rms_norms<Float16>();
}

TEST_CASE("emulated CUDA RMSNorm sums the weight's gradient over many chunks and wide rows in panels", "[cuda]") {
  check_rms_norm<float, 4>(1030, 16, false);  // three rows in each of 344 chunks, the last but one
  check_rms_norm<BFloat16, 1>(515, 131, true);
  check_rms_norm<BFloat16, 8>(3, 2 * cuda::RmsNormBackward<BFloat16, 8>::kPanel + 72, false);
  check_rms_norm<float, 1>(2, cuda::RmsNormBackward<float, 1>::kPanel + 1, false);
}

TEST_CASE("emulated CUDA RMSNorm of no rows has a weight gradient of zero", "[cuda]") {
  const Tensor x = at::empty({0, 24}), weight = at::ones({24});
  const Tensors results = run_rms_norm<float, 4>(x, weight, x, false, WarpOrder::kForward);
  CHECK(at::equal(results[3], at::zeros({24})));
}

TEST_CASE("emulated CUDA rotary embedding equals the formula", "[cuda]") {
  check_rotaries<float>();
  check_rotaries<BFloat16>();
  check_rotaries<Float16>();
}

TEST_CASE("emulated CUDA gated activation equals the formula", "[cuda]") {
  check_gated_activations<float>();
  check_gated_activations<BFloat16>();
  check_gated_activations<Float16>();
}

namespace {

constexpr int64_t kFarRows = (int64_t{1} << 31) / 4096 + 2;

// A tensor of more than 2^31 elements, of which only the last rows are ever touched: `last`, and zeros before it.
Tensor far(const Tensor& last) {
  const Tensor x = at::empty({kFarRows, last.size(1)}, last.options());
  x.narrow(0, kFarRows - 2000, 2000).zero_();
  x.narrow(0, kFarRows - 1, 1).copy_(last);
  return x;
}

// The block that has row or item `index` of those that blocks take in turn.
template <typename Kernel>
void launch_block(const typename Kernel::Args& args, int64_t index) {
  cuda::emulation::Block block(cuda::kThreads);
  const int blocks = Kernel::grid(args).x;
  cuda::emulation::run_block<Kernel>(block, args, {static_cast<int>(index % blocks), 0, blocks}, WarpOrder::kForward);
}

bool last_equals(const Tensor& far_away, const Tensor& near) {
  return at::equal(far_away.narrow(0, far_away.size(0) - 1, 1), near.narrow(0, near.size(0) - 1, 1));
}

}  // namespace

TEST_CASE("emulated CUDA layers reach rows behind 2^31 elements", "[cuda]") {
  at::manual_seed(0);
  const Tensor x = at::randn({1, 4096}).to(at::kBFloat16), grad = at::randn({1, 4096}).to(at::kBFloat16);
  const Tensor weight = at::randn({4096}).to(at::kBFloat16), far_x = far(x), far_grad = far(grad), far_out = far(x);
  const Tensor rstd = at::ones({kFarRows}), near_rstd = at::ones({1}), near_out = at::empty_like(x);

  using Norm = cuda::RmsNorm<BFloat16, 8>;
  launch<Norm>(cuda::rms_norm_args(x, weight, 1e-5, false, near_out, near_rstd), WarpOrder::kForward);
  launch_block<Norm>(cuda::rms_norm_args(far_x, weight, 1e-5, false, far_out, rstd), kFarRows - 1);
  CHECK(last_equals(far_out, near_out));
  CHECK(last_equals(rstd, near_rstd));

  using NormBackward = cuda::RmsNormBackward<BFloat16, 8>;
  const Tensor partial = cuda::norm_partial(far_x, kFarRows), near_partial = cuda::norm_partial(x, 1);
  launch<NormBackward>(cuda::rms_norm_backward_args(grad, x, weight, near_rstd, false, near_out, near_partial),
                       WarpOrder::kForward);
  launch_block<NormBackward>(cuda::rms_norm_backward_args(far_grad, far_x, weight, rstd, false, far_out, partial),
                             partial.size(0) - 1);
  CHECK(last_equals(far_out, near_out));
  CHECK(last_equals(partial, near_partial));

  using Rotary = cuda::Rotary<BFloat16, 8>;
  const auto heads = [](const Tensor& y) { return y.view({y.size(0), 32, 128}); };
  const Tensor angle = at::randn({1, 64}), far_angle = far(angle);
  launch<Rotary>(cuda::rotary_args(heads(x), angle, angle, near_out), WarpOrder::kForward);
  const auto rotary = cuda::rotary_args(heads(far_x), far_angle, far_angle, far_out);
  for (int i = 1; i <= 2; ++i) launch_block<Rotary>(rotary, Rotary::grid(rotary).x - i);
  CHECK(last_equals(far_out, near_out));

  using Gated = cuda::GatedActivation<BFloat16, 1>;  // whose threads are more than 2^31, too
  launch<Gated>(cuda::gated_activation_args(x, grad, "silu", near_out), WarpOrder::kForward);
  const auto gated = cuda::gated_activation_args(far_x, far_grad, "silu", far_out);
  for (int i = 1; i <= 32; ++i) launch_block<Gated>(gated, Gated::grid(gated).x - i);
  CHECK(last_equals(far_out, near_out));
}
