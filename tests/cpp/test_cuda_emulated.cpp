// The CUDA kernels, compiled for the host and run on emulated threads, against the plain formula.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <uniattn/ops.h>

#include "catch.h"
#include "cuda/arguments.h"
#include "cuda/delta_sum.cuh"
#include "cuda/forward.cuh"
#include "cuda/score_backward.cuh"
#include "cuda/value_backward.cuh"

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using uniattn::AttentionOptions;
using uniattn::cuda::BFloat16;
using uniattn::cuda::Float16;
using uniattn::cuda::Side;
using uniattn::cuda::emulation::WarpOrder;

namespace {

// A leader and its followers over a pack, with the gradient of each output.
struct Superblock {
  Tensor q, k, cu_seqlens;
  std::vector<int64_t> lengths;
  std::vector<Tensor> v, grad_out;
  std::vector<OptionalTensor> head_map;
  AttentionOptions options;
};

// For each layer its output, and the gradients with respect to q, k and each layer's v.
struct Results {
  std::vector<Tensor> out, gradients;
};

std::vector<Tensor> all(const Results& r) {
  std::vector<Tensor> tensors = r.out;
  tensors.insert(tensors.end(), r.gradients.begin(), r.gradients.end());
  return tensors;
}

// Equal to x, with NaN before and behind it in memory.
Tensor poisoned(const Tensor& x) {
  const Tensor padded = at::full({x.size(0) + 16, x.size(1), x.size(2)}, NAN, x.options());
  return padded.narrow(0, 8, x.size(0)).copy_(x);
}

Superblock make_superblock(int64_t layers, const std::vector<int64_t>& lengths, int64_t heads, int64_t kv_heads,
                           int64_t head_dim, at::ScalarType dtype, const AttentionOptions& options) {
  at::manual_seed(0);
  Superblock s;
  s.options = options;
  s.lengths = lengths;
  const Tensor sizes = at::tensor(lengths, at::kLong);
  s.cu_seqlens = at::cat({at::zeros({1}, at::kLong), sizes.cumsum(0)}).to(at::kInt);
  const int64_t tokens = sizes.sum().item<int64_t>();
  const auto draw = [&](int64_t n) { return poisoned(at::randn({tokens, n, head_dim}).to(dtype)); };
  s.q = draw(heads);
  s.k = draw(kv_heads);
  for (int64_t i = 0; i < layers; ++i) {
    s.v.push_back(draw(kv_heads));
    s.grad_out.push_back(draw(heads));
  }
  // The second layer's map leaves heads out and crosses KV groups.
  s.head_map.resize(layers);
  if (layers > 1) s.head_map[1] = (at::arange(heads, at::kLong) * 3 + 1).remainder(heads).clamp_max(heads - 2);
  return s;
}

// P of one sequence, [heads, tokens, tokens].
Tensor plain_probs(const Tensor& q, const Tensor& k, const AttentionOptions& options) {
  const int64_t tokens = q.size(0);
  Tensor scores = at::einsum("ihd,jhd->hij", {q, k.repeat_interleave(q.size(1) / k.size(1), 1)}) *
                  options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(2))));
  if (options.softcap > 0) scores = (scores / options.softcap).tanh() * options.softcap;
  const Tensor distance = at::arange(tokens).unsqueeze(1) - at::arange(tokens);
  if (options.causal) scores = scores.masked_fill(distance < 0, -INFINITY);
  if (options.window > 0) scores = scores.masked_fill(distance >= options.window, -INFINITY);
  return scores.softmax(-1);
}

// The formula in `dtype`, differentiated by autograd.
Results plain_results(const Superblock& s, at::ScalarType dtype) {
  const auto leaf = [&](const Tensor& x) { return x.to(dtype).detach().clone().set_requires_grad(true); };
  std::vector<Tensor> inputs{leaf(s.q), leaf(s.k)};
  for (const Tensor& v : s.v) inputs.push_back(leaf(v));
  std::vector<std::vector<Tensor>> parts(s.v.size());
  int64_t begin = 0;
  for (const int64_t length : s.lengths) {
    const auto slice = [&](const Tensor& x) { return x.narrow(0, begin, length); };
    const Tensor p = plain_probs(slice(inputs[0]), slice(inputs[1]), s.options);
    for (size_t i = 0; i < s.v.size(); ++i) {
      const Tensor v = slice(inputs[2 + i]).repeat_interleave(s.q.size(1) / s.k.size(1), 1);
      parts[i].push_back(at::einsum("hij,jhd->ihd", {s.head_map[i] ? p.index_select(0, *s.head_map[i]) : p, v}));
    }
    begin += length;
  }
  Results r;
  std::vector<Tensor> grad_out;
  for (size_t i = 0; i < parts.size(); ++i) {
    r.out.push_back(at::cat(parts[i]));
    grad_out.push_back(s.grad_out[i].to(dtype));
  }
  r.gradients = torch::autograd::grad(r.out, inputs, grad_out);
  return r;
}

template <typename Kernel>
void emulate(const typename Kernel::Args& args, WarpOrder order) {
  uniattn::cuda::emulation::run<Kernel>(args, uniattn::cuda::kThreads, order);
}

// A tensor like x for a kernel to fill, in memory full of NaN.
Tensor unfilled(const Tensor& x) {
  return poisoned(at::full(x.sizes(), NAN, x.options()));
}

void check_only_filled_inside(const Tensor& x) {
  CHECK(x.isfinite().all().item<bool>());
  const int64_t row = x.size(1) * x.size(2);
  const Tensor whole = at::empty({0}, x.options()).set_(x.storage());
  CHECK(whole.narrow(0, 0, 8 * row).isnan().all().item<bool>());
  CHECK(whole.narrow(0, whole.numel() - 8 * row, 8 * row).isnan().all().item<bool>());
}

template <typename T, int kHeadDim>
Results kernel_results(const Superblock& s, WarpOrder order) {
  namespace cuda = uniattn::cuda;
  Results r;
  const auto pointer = [](const OptionalTensor& map) { return map ? map->const_data_ptr<int64_t>() : nullptr; };
  const Tensor lse = at::full({s.q.size(1), s.q.size(0)}, NAN, at::kFloat);
  const cuda::PatternTensors first(s.q, s.k, Tensor(), s.cu_seqlens, s.options);
  const cuda::PatternTensors rest(s.q, s.k, lse, s.cu_seqlens, s.options);
  std::vector<Tensor> dv, delta;
  for (size_t i = 0; i < s.v.size(); ++i) {
    r.out.push_back(unfilled(s.q));
    dv.push_back(unfilled(s.k));
    const cuda::Pattern pattern = i == 0 ? first.pattern : rest.pattern;
    emulate<cuda::Forward<T, kHeadDim>>({pattern, pointer(s.head_map[i]), s.v[i].const_data_ptr(), r.out[i].data_ptr(),
                                         i == 0 ? lse.data_ptr<float>() : nullptr},
                                        order);
    delta.push_back((s.grad_out[i].to(at::kFloat) * r.out[i].to(at::kFloat)).sum(2).t().contiguous());
    if (i == 0 && cuda::accumulates_dv(kHeadDim)) continue;
    emulate<cuda::ValueBackward<T, kHeadDim>>(
        {rest.pattern, pointer(s.head_map[i]), s.grad_out[i].const_data_ptr(), dv[i].data_ptr()}, order);
  }

  const cuda::ReaderTensors readers(c10::List<OptionalTensor>(s.head_map), s.q);
  const Tensor deltas = at::stack(delta), sum = at::full_like(lse, NAN);
  emulate<cuda::DeltaSum>({static_cast<int>(s.q.size(0)), static_cast<int>(s.q.size(1)), readers.pointers(),
                           deltas.const_data_ptr<float>(), sum.data_ptr<float>()},
                          order);
  const Tensor dq = unfilled(s.q), dk = unfilled(s.k);
  cuda::SuperblockBackwardArgs args{rest.pattern,  readers.pointers(), {}, sum.const_data_ptr<float>(), dq.data_ptr(),
                                    dk.data_ptr(), dv[0].data_ptr()};
  for (size_t i = 0; i < s.v.size(); ++i) args.layers[i] = {s.grad_out[i].const_data_ptr(), s.v[i].const_data_ptr()};
  emulate<cuda::ScoreBackward<T, kHeadDim, Side::kQueries>>(args, order);
  emulate<cuda::ScoreBackward<T, kHeadDim, Side::kKeys>>(args, order);

  r.gradients = {dq, dk};
  r.gradients.insert(r.gradients.end(), dv.begin(), dv.end());
  for (const Tensor& x : all(r)) check_only_filled_inside(x);
  return r;
}

// At most twice the error of the formula in the same dtype, in the mean and, but for one rounding, at worst.
void check_error(const Tensor& ours, const Tensor& plain, const Tensor& exact) {
  const Tensor error = (ours.to(at::kDouble) - exact).abs(), allowed = (plain.to(at::kDouble) - exact).abs();
  const double epsilon = ours.scalar_type() == at::kHalf ? 0x1p-10 : 0x1p-7;
  const double rounding = epsilon * exact.abs().max().item<double>();
  const auto rms = [](const Tensor& x) { return x.square().mean().sqrt().item<double>(); };
  CHECK(rms(error) <= 2 * rms(allowed) + rounding / 8);
  CHECK(error.max().item<double>() <= 2 * allowed.max().item<double>() + rounding);
}

template <typename T, int kHeadDim>
void check_kernels(int64_t layers, const std::vector<int64_t>& lengths, int64_t heads, int64_t kv_heads,
                   const AttentionOptions& options) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const Superblock s = make_superblock(layers, lengths, heads, kv_heads, kHeadDim, dtype, options);
  const std::vector<Tensor> ours = all(kernel_results<T, kHeadDim>(s, WarpOrder::kForward));
  const std::vector<Tensor> again = all(kernel_results<T, kHeadDim>(s, WarpOrder::kBackward));
  const std::vector<Tensor> plain = all(plain_results(s, dtype)), exact = all(plain_results(s, at::kDouble));
  for (size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    check_error(ours[i], plain[i], exact[i]);
    CHECK(at::equal(ours[i], again[i]));
  }
}

}  // namespace

TEST_CASE("emulated CUDA kernels of head_dim 64 equal the formula", "[cuda]") {
  check_kernels<BFloat16, 64>(3, {0, 1, 63, 64, 65, 113}, 4, 2, {});
  check_kernels<Float16, 64>(2, {65, 0, 113, 1, 1}, 4, 1, {true, 40, 0, std::nullopt});
}

TEST_CASE("emulated CUDA kernels of head_dim 96 equal the formula", "[cuda]") {
  check_kernels<BFloat16, 96>(3, {113, 1, 20}, 4, 4, {false, 70, 5.0, std::nullopt});
  check_kernels<Float16, 96>(1, {64, 65}, 4, 2, {true, 0, 0, 0.2});
}

TEST_CASE("emulated CUDA kernels of head_dim 128 equal the formula", "[cuda]") {
  check_kernels<BFloat16, 128>(3, {63, 1, 0, 65}, 4, 2, {});
  check_kernels<Float16, 128>(2, {113, 7}, 4, 2, {false, 0, 3.0, std::nullopt});
}

TEST_CASE("emulated CUDA kernels of head_dim 256 equal the formula", "[cuda]") {
  check_kernels<BFloat16, 256>(3, {65, 1, 31}, 4, 2, {true, 20, 8.0, std::nullopt});
  check_kernels<Float16, 256>(1, {64, 3}, 4, 2, {});
}
