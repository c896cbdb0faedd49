// The CUDA kernels of the forward pass where queries are the last tokens of their sequences, on emulated threads.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <uniattn/ops.h>

#include "cuda/arguments.h"
#include "cuda/forward.cuh"
#include "emulated_tensors.h"

using at::Tensor;
namespace cuda = uniattn::cuda;
using cuda::BFloat16;
using cuda::Float16;
using cuda::emulation::WarpOrder;
using emulated::poisoned;
using emulated::unfilled;
using uniattn::AttentionOptions;

namespace {

Tensor bounds(const std::vector<int64_t>& lengths) {
  return at::cat({at::zeros({1}, at::kLong), at::tensor(lengths, at::kLong).cumsum(0)}).to(at::kInt);
}

struct Prefill {
  std::vector<int64_t> queries, keys;  // of each sequence
  Tensor q, k, v, follower_v, head_map;
  AttentionOptions options;

  // Outputs of the leader and the follower in `dtype`.
  std::pair<Tensor, Tensor> expected(at::ScalarType dtype) const {
    std::vector<Tensor> leader, follower;
    int64_t query = 0, key = 0;
    for (size_t s = 0; s < keys.size(); query += queries[s], key += keys[s], ++s) {
      const auto spread = [&](const Tensor& x) {
        return x.narrow(0, key, keys[s]).to(dtype).repeat_interleave(q.size(1) / x.size(1), 1);
      };
      Tensor scores = at::einsum("ihd,jhd->hij", {q.narrow(0, query, queries[s]).to(dtype), spread(k)}) /
                      std::sqrt(static_cast<double>(q.size(2)));
      if (options.softcap > 0) scores = (scores / options.softcap).tanh() * options.softcap;
      const Tensor distance = (at::arange(queries[s]) + keys[s] - queries[s]).unsqueeze(1) - at::arange(keys[s]);
      scores = scores.masked_fill(distance < 0, -INFINITY);
      if (options.window > 0) scores = scores.masked_fill(distance >= options.window, -INFINITY);
      const Tensor p = scores.softmax(-1);
      leader.push_back(at::einsum("hij,jhd->ihd", {p, spread(v)}));
      follower.push_back(at::einsum("hij,jhd->ihd", {p.index_select(0, head_map), spread(follower_v)}));
    }
    return {at::cat(leader), at::cat(follower)};
  }
};

template <typename T, int kHeadDim>
std::pair<Tensor, Tensor> run_kernels(const Prefill& p, WarpOrder order) {
  const Tensor lse = at::full({p.q.size(1), p.q.size(0)}, NAN, at::kFloat);
  const Tensor leader = unfilled(p.q), follower = unfilled(p.q);
  const auto forward = [&](const Tensor& known_lse, const Tensor& v, const int64_t* map, const Tensor& out) {
    const cuda::PatternTensors tensors(p.q, p.k, known_lse, bounds(p.queries), bounds(p.keys), p.options);
    cuda::emulation::run<cuda::Forward<T, kHeadDim>>(
        {tensors.pattern, map, v.const_data_ptr(), static_cast<int>(v.size(1)), out.data_ptr(), lse.data_ptr<float>()},
        cuda::kThreads, order);
    emulated::check_only_filled_inside(out);
  };
  forward(Tensor(), p.v, nullptr, leader);
  forward(lse, p.follower_v, p.head_map.const_data_ptr<int64_t>(), follower);
  return {leader, follower};
}

template <typename T, int kHeadDim>
void check_prefill(const std::vector<int64_t>& queries, const std::vector<int64_t>& keys, int64_t kv_heads,
                   int64_t value_heads, const AttentionOptions& options) {
  at::manual_seed(0);
  constexpr int64_t kHeads = 4;
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const auto draw = [&](const std::vector<int64_t>& lengths, int64_t heads) {
    return poisoned(at::randn({at::tensor(lengths, at::kLong).sum().item<int64_t>(), heads, kHeadDim}).to(dtype));
  };
  const Prefill p{queries,
                  keys,
                  draw(queries, kHeads),
                  draw(keys, kv_heads),
                  draw(keys, kv_heads),
                  draw(keys, value_heads),
                  at::tensor({3, 3, 0, 1}, at::kLong),
                  options};
  const auto ours = run_kernels<T, kHeadDim>(p, WarpOrder::kForward);
  const auto again = run_kernels<T, kHeadDim>(p, WarpOrder::kBackward);
  const auto plain = p.expected(dtype), exact = p.expected(at::kDouble);
  emulated::check_error(ours.first, plain.first, exact.first);
  emulated::check_error(ours.second, plain.second, exact.second);
  CHECK(at::equal(ours.first, again.first));
  CHECK(at::equal(ours.second, again.second));
}

}  // namespace

TEST_CASE("emulated CUDA prefill equals the formula", "[cuda]") {
  check_prefill<BFloat16, 64>({150, 1, 0, 3, 40}, {150, 1, 0, 70, 64}, 2, 4, {});
  check_prefill<Float16, 64>({5, 70}, {200, 100}, 1, 2, {true, 50, 0, std::nullopt});
  check_prefill<BFloat16, 256>({33}, {90}, 4, 1, {true, 20, 8.0, std::nullopt});
}
