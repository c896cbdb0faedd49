// The CUDA kernels of training, compiled for the host and run on emulated threads, against the plain formula.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <uniattn/ops.h>

#include "cuda/arguments.h"
#include "cuda/delta.cuh"
#include "cuda/forward.cuh"
#include "cuda/score_backward.cuh"
#include "cuda/value_backward.cuh"
#include "emulated_tensors.h"

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
namespace cuda = uniattn::cuda;
using cuda::BFloat16;
using cuda::Float16;
using cuda::Side;
using cuda::emulation::WarpOrder;
using emulated::check_only_filled_inside;
using emulated::poisoned;
using emulated::unfilled;
using uniattn::AttentionOptions;

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

// The kernels' results, in the order in which autograd calls them: all layers forward, then back.
template <typename T, int kHeadDim>
class KernelRun {
 public:
  KernelRun(const Superblock& superblock, WarpOrder order) : s_(superblock), order_(order) {
    for (size_t i = 0; i < s_.v.size(); ++i) run_layer(i);
    run_superblock_backward();
    for (const Tensor& x : all(results_)) check_only_filled_inside(x);
  }
  const Results& results() const { return results_; }

 private:
  template <typename Kernel>
  void launch(const typename Kernel::Args& args) {
    cuda::emulation::run<Kernel>(args, cuda::kThreads, order_);
  }

  // Output, delta and, where it is not part of the superblock's backward, dV of one layer.
  void run_layer(size_t i) {
    const auto& pattern = i == 0 ? leader_.pattern : pattern_.pattern;
    const int64_t* map = s_.head_map[i] ? s_.head_map[i]->const_data_ptr<int64_t>() : nullptr;
    results_.out.push_back(unfilled(s_.q));
    dv_.push_back(unfilled(s_.k));
    delta_.push_back(at::full_like(lse_, NAN));
    const Tensor &out = results_.out[i], &grad_out = s_.grad_out[i];
    launch<cuda::Forward<T, kHeadDim>>({pattern, map, s_.v[i].const_data_ptr(), pattern.kv_heads, out.data_ptr(),
                                        i == 0 ? lse_.data_ptr<float>() : nullptr});
    launch<cuda::Delta<T>>({pattern.type, pattern.tokens, pattern.heads, pattern.head_dim, grad_out.const_data_ptr(),
                            out.const_data_ptr(), delta_[i].data_ptr<float>()});
    if (i == 0 && cuda::accumulates_dv(kHeadDim)) return;
    launch<cuda::ValueBackward<T, kHeadDim>>({pattern_.pattern, map, grad_out.const_data_ptr(), dv_[i].data_ptr()});
  }

  void run_superblock_backward() {
    const auto& pattern = pattern_.pattern;
    const cuda::ReaderTensors readers(c10::List<OptionalTensor>(s_.head_map), s_.q);
    const Tensor deltas = at::stack(delta_), sum = at::full_like(lse_, NAN);
    launch<cuda::DeltaSum>(
        {pattern.tokens, pattern.heads, readers.pointers(), deltas.const_data_ptr<float>(), sum.data_ptr<float>()});
    const Tensor dq = unfilled(s_.q), dk = unfilled(s_.k);
    cuda::SuperblockBackwardArgs args{pattern,       readers.pointers(), {}, sum.const_data_ptr<float>(), dq.data_ptr(),
                                      dk.data_ptr(), dv_[0].data_ptr()};
    for (size_t i = 0; i < s_.v.size(); ++i) {
      args.layers[i] = {s_.grad_out[i].const_data_ptr(), s_.v[i].const_data_ptr()};
    }
    launch<cuda::ScoreBackward<T, kHeadDim, Side::kQueries>>(args);
    launch<cuda::ScoreBackward<T, kHeadDim, Side::kKeys>>(args);
    results_.gradients = {dq, dk};
    results_.gradients.insert(results_.gradients.end(), dv_.begin(), dv_.end());
  }

  const Superblock& s_;
  const WarpOrder order_;
  const Tensor lse_ = at::full({s_.q.size(1), s_.q.size(0)}, NAN, at::kFloat);
  const cuda::PatternTensors leader_{s_.q, s_.k, Tensor(), s_.cu_seqlens, s_.options};
  const cuda::PatternTensors pattern_{s_.q, s_.k, lse_, s_.cu_seqlens, s_.options};
  std::vector<Tensor> dv_, delta_;
  Results results_;
};

template <typename T, int kHeadDim>
void check_kernels(int64_t layers, const std::vector<int64_t>& lengths, int64_t heads, int64_t kv_heads,
                   const AttentionOptions& options) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const Superblock s = make_superblock(layers, lengths, heads, kv_heads, kHeadDim, dtype, options);
  const std::vector<Tensor> ours = all(KernelRun<T, kHeadDim>(s, WarpOrder::kForward).results());
  const std::vector<Tensor> again = all(KernelRun<T, kHeadDim>(s, WarpOrder::kBackward).results());
  const std::vector<Tensor> plain = all(plain_results(s, dtype)), exact = all(plain_results(s, at::kDouble));
  for (size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    emulated::check_error(ours[i], plain[i], exact[i]);
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
