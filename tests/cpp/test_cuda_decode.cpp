// The CUDA kernels of decoding, compiled for the host and run on emulated threads, against the plain formula.
#define UNIATTN_EMULATED_DEVICE
#include <ATen/ATen.h>
#include <uniattn/ops.h>

#include "cuda/cache_rows.cuh"
#include "cuda/decode.cuh"
#include "cuda/decode_arguments.h"
#include "emulated_tensors.h"

using at::Tensor;
namespace cuda = uniattn::cuda;
using cuda::BFloat16;
using cuda::Float16;
using cuda::emulation::WarpOrder;
using uniattn::AttentionOptions;

namespace {

struct Shape {
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, value_heads, head_dim, page_size;
  AttentionOptions options;
};

template <typename Kernel>
void launch(const typename Kernel::Args& args, WarpOrder order = WarpOrder::kForward) {
  cuda::emulation::run<Kernel>(args, cuda::kThreads, order);
}

// `rows` into the cache, and from there to `back`.
template <typename Word>
void copy_rows(const Tensor& cache, const Tensor& rows, const Tensor& back, const Tensor& slots) {
  launch<cuda::CacheRows<Word, cuda::Direction::kIntoCache>>(cuda::cache_rows(cache, rows, slots));
  launch<cuda::CacheRows<Word, cuda::Direction::kOutOfCache>>(cuda::cache_rows(cache, back, slots));
}

// Keys and values of ragged sequences in scattered pages, put there by the kernel; all that no token may see is NaN.
class Step {
 public:
  Step(const Shape& shape, at::ScalarType dtype) : shape_(shape) {
    at::manual_seed(0);
    const auto batch = static_cast<int64_t>(shape.lengths.size());
    q = at::randn({batch, shape.heads, shape.head_dim}).to(dtype);
    lengths = at::tensor(shape.lengths, at::kInt);
    max_length = lengths.max().item<int64_t>();
    table =
        at::full({batch, uniattn::most_visible_pages(max_length, shape.options.window, shape.page_size)}, -1, at::kInt);
    head_map = (at::arange(shape.heads) * 3 + 1).remainder(shape.heads);
    const int64_t pages = batch * table.size(1) + 2;
    const auto cache = [&](int64_t heads) {
      return at::full({pages, heads, shape.page_size, shape.head_dim}, NAN, q.options());
    };
    k_cache = cache(shape.kv_heads), v_cache = cache(shape.kv_heads), follower_cache = cache(shape.value_heads);
    const Tensor order = at::randperm(pages, at::kInt);
    for (int64_t b = 0; b < batch; ++b) fill(b, order.narrow(0, b * table.size(1), table.size(1)));
  }

  // Outputs of the leader and a follower [batch, heads, head_dim], in `dtype`; rows[b]: P of sequence b [heads,
  // length].
  struct Expected {
    Tensor leader, follower;
    std::vector<Tensor> rows;
  };
  Expected expected(at::ScalarType dtype) const {
    Expected e;
    std::vector<Tensor> leader, follower;
    for (size_t b = 0; b < shape_.lengths.size(); ++b) {
      const auto spread = [&](const Tensor& x) { return x.to(dtype).repeat_interleave(shape_.heads / x.size(1), 1); };
      Tensor s = at::einsum("hd,jhd->hj", {q[static_cast<int64_t>(b)].to(dtype), spread(keys_[b])}) *
                 shape_.options.scale.value_or(1 / std::sqrt(static_cast<double>(shape_.head_dim)));
      const double cap = shape_.options.softcap;
      if (cap > 0) s = (s / cap).tanh() * cap;
      const int64_t hidden = shape_.options.window > 0 ? shape_.lengths[b] - shape_.options.window : 0;
      if (hidden > 0) s.narrow(1, 0, hidden).fill_(-INFINITY);
      e.rows.push_back(s.softmax(1));
      leader.push_back(at::einsum("hj,jhd->hd", {e.rows[b], spread(values_[b])}));
      follower.push_back(at::einsum("hj,jhd->hd", {e.rows[b].index_select(0, head_map), spread(follower_values_[b])}));
    }
    e.leader = at::stack(leader), e.follower = at::stack(follower);
    return e;
  }

  // Of the page that holds column 0 of a sequence.
  int64_t first_position(size_t b) const {
    return uniattn::visible_pages(shape_.lengths[b], shape_.options.window, shape_.page_size).first * shape_.page_size;
  }

  Tensor q, lengths, table, head_map, k_cache, v_cache, follower_cache;
  int64_t max_length;

 private:
  // Sequence b, whose n-th page in sight is pages[n]. Only what is seen is written.
  void fill(int64_t b, const Tensor& pages) {
    const int64_t length = shape_.lengths[b], window = shape_.options.window, size = shape_.page_size;
    const auto range = uniattn::visible_pages(length, window, size);
    std::vector<int64_t> slots;
    for (int64_t p = range.first; p < range.last; ++p) table[b][p % table.size(1)] = pages[p - range.first];
    const int64_t seen = window > 0 ? std::min(window, length) : length;
    for (int64_t i = length - seen; i < length; ++i) {
      slots.push_back(table[b][i / size % table.size(1)].item<int64_t>() * size + i % size);
    }
    const Tensor places = at::tensor(slots, at::kLong);
    const auto draw = [&](const Tensor& cache, std::vector<Tensor>& all) {
      all.push_back(at::randn({length, cache.size(1), cache.size(3)}).to(cache.scalar_type()));
      const Tensor rows = all.back().narrow(0, length - seen, seen).contiguous(), back = at::full_like(rows, NAN);
      if (cache.size(3) * cache.element_size() % sizeof(cuda::Words) == 0) {
        copy_rows<cuda::Words>(cache, rows, back, places);
      } else {
        copy_rows<uint8_t>(cache, rows, back, places);
      }
      CHECK(at::equal(back, rows));
    };
    draw(k_cache, keys_), draw(v_cache, values_), draw(follower_cache, follower_values_);
  }

  const Shape shape_;
  std::vector<Tensor> keys_, values_, follower_values_;  // per sequence [length, heads, head_dim]
};

struct Results {
  Tensor leader, follower, probs;
};

template <typename T, int kVector>
Results run_kernels(const Step& s, const AttentionOptions& options, WarpOrder order) {
  const cuda::LeaderTensors leader(s.q, s.k_cache, s.v_cache, s.table, s.lengths, s.max_length, true, options);
  for (const Tensor& x : {leader.probs, leader.out, leader.partial_out, leader.maximum, leader.total}) x.fill_(NAN);
  launch<cuda::DecodeLeader<T, kVector>>(leader.leader(), order);
  launch<cuda::DecodeMerge<T>>(leader.merge(), order);
  const cuda::FollowerTensors follower(leader.probs, s.follower_cache, s.table, s.lengths, s.head_map, options.window);
  for (const Tensor& x : {follower.out, follower.partial_out}) x.fill_(NAN);
  launch<cuda::DecodeFollower<T, kVector>>(follower.follower(), order);
  launch<cuda::DecodeMerge<T>>(follower.merge(), order);
  return {leader.out, follower.out, leader.probs};
}

template <typename T, int kVector>
void check_decoding(const Shape& shape) {
  const auto dtype = c10::CppTypeToScalarType<T>::value;
  const Step step(shape, dtype);
  const Results ours = run_kernels<T, kVector>(step, shape.options, WarpOrder::kForward);
  const Results again = run_kernels<T, kVector>(step, shape.options, WarpOrder::kBackward);
  const auto plain = step.expected(dtype), exact = step.expected(at::kDouble);
  emulated::check_error(ours.leader, plain.leader, exact.leader);
  emulated::check_error(ours.follower, plain.follower, exact.follower);
  CHECK(at::equal(ours.leader, again.leader));
  CHECK(at::equal(ours.follower, again.follower));
  CHECK(at::equal(ours.probs, again.probs));
  for (size_t b = 0; b < shape.lengths.size(); ++b) {
    const Tensor row = ours.probs[static_cast<int64_t>(b)];
    const int64_t first = step.first_position(b), seen = shape.lengths[b] - first;
    CHECK(at::allclose(row.narrow(1, 0, seen), exact.rows[b].narrow(1, first, seen).to(at::kFloat), 1e-4, 1e-6));
    CHECK_FALSE(row.narrow(1, seen, row.size(1) - seen).any().item<bool>());
  }
}

}  // namespace

TEST_CASE("emulated CUDA decoding equals the formula", "[cuda]") {
  check_decoding<float, 4>({{1, 300, 17}, 4, 4, 4, 64, 16, {}});
  check_decoding<float, 4>({{520, 33}, 6, 2, 3, 20, 16, {true, 40, 2.0, 0.4}});
  check_decoding<float, 1>({{70}, 4, 2, 1, 7, 5, {}});
  check_decoding<BFloat16, 8>({{257, 64}, 4, 2, 2, 64, 32, {}});
  check_decoding<BFloat16, 8>({{300}, 10, 1, 5, 80, 16, {true, 0, 5.0, std::nullopt}});
  check_decoding<Float16, 8>({{40, 1, 129}, 4, 1, 4, 128, 16, {true, 5, 0, std::nullopt}});
  check_decoding<Float16, 1>({{90}, 3, 3, 1, 33, 16, {}});
}

TEST_CASE("emulated CUDA decoding takes heads wider than a warp reads at once", "[cuda]") {
  check_decoding<BFloat16, 8>({{70}, 2, 1, 2, 272, 16, {}});
  check_decoding<float, 1>({{20}, 2, 2, 1, 67, 16, {}});
}

TEST_CASE("emulated CUDA decoding sees nothing in a split before its window", "[cuda]") {
  check_decoding<float, 4>({{1000, 600}, 2, 1, 1, 16, 1024, {true, 30, 0, std::nullopt}});
}

TEST_CASE("emulated CUDA decoding names the argument whose values are wrong", "[cuda]") {
  const Shape shape{{40, 3}, 4, 2, 2, 16, 16, {}};
  const auto run = [&](auto change) {
    Step step(shape, at::kFloat);
    change(step);
    run_kernels<float, 4>(step, shape.options, WarpOrder::kForward);
  };
  CHECK_THROWS_WITH(run([](Step& s) { s.table[1][0] = 100; }), contains("page_table has an entry"));
  CHECK_THROWS_WITH(run([](Step& s) { s.table[0][2] = -1; }), contains("page_table has an entry"));
  CHECK_THROWS_WITH(run([](Step& s) { s.table = s.table.narrow(1, 0, 2); }), contains("page_table has fewer slots"));
  CHECK_THROWS_WITH(run([](Step& s) { s.lengths[0] = 41; }), contains("lengths must be"));
  CHECK_THROWS_WITH(run([](Step& s) { s.lengths[1] = 0; }), contains("lengths must be"));
  CHECK_THROWS_WITH(run([](Step& s) { s.head_map[3] = 4; }), contains("head_map has an entry"));
  Step step(shape, at::kFloat);
  const Tensor x = at::zeros({1, 2, 16});
  for (const int64_t slot : {int64_t{-1}, step.k_cache.size(0) * 16}) {
    const Tensor slots = at::tensor(std::vector<int64_t>{slot}, at::kLong);
    CHECK_THROWS_WITH(
        (launch<cuda::CacheRows<cuda::Words, cuda::Direction::kIntoCache>>(cuda::cache_rows(step.k_cache, x, slots))),
        contains("slots has an entry"));
  }
}
