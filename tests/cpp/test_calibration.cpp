#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>

#include "calibration/calibrate.h"
#include "calibration/ridge.h"
#include "catch.h"
#include "data/loader.h"
#include "model/decoder.h"
#include "support/error.h"
#include "tiny_model.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

Gram gram_of(const at::Tensor& f, const at::Tensor& y, int64_t rows_at_once) {
  Gram gram(f.size(1), y.size(1));
  for (int64_t begin = 0; begin < f.size(0); begin += rows_at_once) {
    const int64_t count = std::min(rows_at_once, f.size(0) - begin);
    gram.add(f.narrow(0, begin, count), y.narrow(0, begin, count));
  }
  return gram;
}

}  // namespace

TEST_CASE("ridge equals a plain float64 least-squares solve", "[calibration]") {
  const at::Tensor f = at::randn({300, 12}, at::kDouble), y = at::randn({300, 7}, at::kDouble);
  const Gram gram = gram_of(f, y, 300);
  const double ridge = 0.05;
  const RidgeSolution solution = solve_ridge(gram, gram, {12}, ridge);
  // The same problem by stacking sqrt(lambda) I under F.
  const double lambda = ridge * at::mm(f.t(), f).diagonal().mean().item<double>();
  const at::Tensor stacked_f = at::cat({f, std::sqrt(lambda) * at::eye(12, at::kDouble)});
  const at::Tensor stacked_y = at::cat({y, at::zeros({12, 7}, at::kDouble)});
  CHECK(relative(solution.w, std::get<0>(at::linalg_lstsq(stacked_f, stacked_y))) < 1e-8);
  CHECK(std::abs(solution.error - (y - at::mm(f, solution.w)).square().sum().item<double>()) < 1e-8 * gram.yy);
}

TEST_CASE("the solution does not depend on how rows are split", "[calibration]") {
  const at::Tensor f = at::randn({257, 9}), y = at::randn({257, 5});
  const Gram whole = gram_of(f, y, 257), parts = gram_of(f, y, 3);
  CHECK(relative(solve_ridge(parts, parts, {9}, 1e-6).w, solve_ridge(whole, whole, {9}, 1e-6).w) < 1e-10);
}

TEST_CASE("sums tell what a solution leaves, and of some features alone", "[calibration]") {
  const at::Tensor f = at::randn({400, 300}, at::kDouble), y = at::randn({400, 5}, at::kDouble);
  const at::Tensor w = at::randn({300, 5}, at::kDouble);
  const Gram gram = gram_of(f, y, 150);  // more features than one panel of the sums
  CHECK(relative(gram.ff, at::mm(f.t(), f)) < 1e-12);
  const Gram left = gram.residual(w), expected = gram_of(f, y - at::mm(f, w), 400);
  CHECK(relative(left.fy, expected.fy) < 1e-12);
  CHECK(std::abs(left.yy - expected.yy) < 1e-12 * expected.yy);
  const Gram part = gram.block(290, 10), alone = gram_of(f.narrow(1, 290, 10), y, 400);
  CHECK(relative(part.ff, alone.ff) < 1e-12);
  CHECK(relative(part.fy, alone.fy) < 1e-12);
  Gram narrow(300, 5);
  narrow.add(f, y, at::kFloat);
  CHECK(relative(narrow.ff, gram.ff) < 1e-5);
}

TEST_CASE("the ridge is chosen on held-out rows", "[calibration]") {
  // Few noisy rows: a strong ridge generalises better. Many: a weak one.
  const at::Tensor truth = at::randn({20, 4}, at::kDouble);
  auto chosen = [&](int64_t rows) {
    const at::Tensor f = at::randn({rows, 20}, at::kDouble), held = at::randn({4000, 20}, at::kDouble);
    const Gram fitted = gram_of(f, at::mm(f, truth) + 3 * at::randn({rows, 4}, at::kDouble), rows);
    return solve_ridge(fitted, gram_of(held, at::mm(held, truth), 4000), {20}, std::nullopt).ridge;
  };
  CHECK(chosen(24) > chosen(20000));
}

TEST_CASE("the ridge path is the plain solve at every ridge", "[calibration]") {
  // Blocks of very different scale, fewer rows than features in one of the problems.
  for (const int64_t rows : {8, 200}) {
    const at::Tensor f = at::randn({rows, 14}, at::kDouble) * at::logspace(-3, 3, 14, 10, at::kDouble);
    const at::Tensor y = at::randn({rows, 5}, at::kDouble), h = at::randn({90, 14}, at::kDouble);
    const Gram fitted = gram_of(f, y, rows), held_out = gram_of(h, at::randn({90, 5}, at::kDouble), 90);
    const RidgeSolution chosen = solve_ridge(fitted, held_out, {6, 8}, std::nullopt);
    const RidgeSolution plain = solve_ridge(fitted, held_out, {6, 8}, chosen.ridge);
    CHECK(relative(chosen.w, plain.w) < 1e-6);
    CHECK(std::abs(chosen.held_out_error - plain.held_out_error) < 1e-6 * plain.held_out_error);
    for (const double ridge : {1e-6, 1e-4, 1e-2, 1.0, 10.0})
      CHECK(chosen.held_out_error <= solve_ridge(fitted, held_out, {6, 8}, ridge).held_out_error * (1 + 1e-9));
  }
}

TEST_CASE("rank-deficient, constant and zero problems have finite solutions", "[calibration]") {
  const at::Tensor narrow = at::randn({5, 12}, at::kDouble), y = at::randn({5, 3}, at::kDouble);
  CHECK(
      at::isfinite(solve_ridge(gram_of(narrow, y, 5), gram_of(narrow, y, 5), {12}, std::nullopt).w).all().item<bool>());
  const at::Tensor constant = at::ones({50, 6}, at::kDouble), target = at::randn({50, 3}, at::kDouble);
  CHECK(at::isfinite(solve_ridge(gram_of(constant, target, 50), gram_of(constant, target, 50), {6}, std::nullopt).w)
            .all()
            .item<bool>());
  const at::Tensor zero = at::zeros({50, 6}, at::kDouble);
  CHECK(solve_ridge(gram_of(zero, zero, 50), gram_of(zero, zero, 50), {6}, std::nullopt).w.abs().max().item<double>() ==
        0);
  const at::Tensor broken = at::full({5, 2}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  CHECK_THROWS_AS(solve_ridge(gram_of(broken, broken, 5), gram_of(broken, broken, 5), {2}, std::nullopt), Error);
}

TEST_CASE("low rank is the best one in the metric of the inputs", "[calibration]") {
  // Inputs of very different scale, where truncating W itself would keep the wrong directions.
  const at::Tensor f = at::randn({500, 8}, at::kDouble) * at::logspace(-2, 1, 8, 10, at::kDouble);
  const at::Tensor y =
      at::mm(f, at::randn({8, 6}, at::kDouble) / at::logspace(-2, 1, 8, 10, at::kDouble).unsqueeze(1)) +
      0.01 * at::randn({500, 6}, at::kDouble);
  const Gram gram = gram_of(f, y, 500);
  const RidgeSolution solution = solve_ridge(gram, gram, {8}, 1e-12);
  const LowRank factors = reduce_last_block(solution, gram, 8, 2);
  CHECK(factors.up.sizes() == at::IntArrayRef({6, 2}));
  CHECK(factors.down.sizes() == at::IntArrayRef({2, 8}));
  // Eckart-Young for the fitted values: the least possible added error is the tail of their singular values.
  const double error = gram.error(at::mm(factors.up, factors.down).t());
  const at::Tensor tail = at::linalg_svdvals(at::mm(f, solution.w)).narrow(0, 2, 4).square().sum();
  CHECK(std::abs(error - solution.error - tail.item<double>()) < 1e-6 * gram.yy);
}

TEST_CASE("streamed calibration equals the plain procedure", "[calibration]") {
  const TemporaryDirectory scratch;
  const ModelDirectory model = write_tiny_model(scratch / "model");
  const TokenShards data = random_shards(scratch / "data", 60, 30);
  const auto tensors = open_model_tensors(model.path);
  SharingPlan plan = SharingPlan::all_full(4);
  plan.layers[2] = {
      .mode = Mode::share_probs, .leader = 1, .compensation = {Compensation::Kind::full, 0}, .head_map = {1, 0, 0, 3}};
  ProcessGroup alone(std::chrono::seconds(60));
  const CalibrationOptions options{
      .fit = {.head_map = false, .value = false, .output = true, .compensation = true}, .ridge = 0.01, .held_out = 0.2};
  const CalibrationResult result = calibrate(model, *tensors, plan, data, options, alone).value();
  REQUIRE(result.layers.size() == 1);
  REQUIRE(result.weights.size() == 2);
  CHECK(result.fitted_tokens + result.held_out_tokens == data.tokens());

  // Plain: every document on its own, explicit probabilities, one stacked system in float64.
  const at::NoGradGuard no_grad;
  const Decoder base = Decoder::read(*tensors, model.config, model.plan, at::kFloat);
  auto probabilities = [&](const Layer& layer, const at::Tensor& x, const Sequences& s) {
    const at::Tensor q = rotated_heads(model.config, x, layer.q, s).transpose(0, 1);
    const at::Tensor k = rotated_heads(model.config, x, layer.k, s).transpose(0, 1).repeat_interleave(2, 0);
    const at::Tensor scores = at::bmm(q, k.transpose(1, 2)) / std::sqrt(6.0);
    return scores.masked_fill(at::ones({x.size(0), x.size(0)}, at::kBool).triu(1), -INFINITY).softmax(-1);
  };
  auto heads = [&](const Layer& layer, const at::Tensor& p, const at::Tensor& x) {
    const at::Tensor v = value_heads(model.config, x, layer.v).transpose(0, 1).repeat_interleave(2, 0);
    return at::bmm(p, v).transpose(0, 1).flatten(1);
  };
  std::vector<at::Tensor> features, targets;
  const int64_t fitted = data.size() - static_cast<int64_t>(0.2 * static_cast<double>(data.size()) + 0.5);
  for (int64_t i = 0; i < fitted; ++i) {
    const Batch batch = make_batch({data.document(i)});
    const Sequences s = make_sequences(model.config, batch.positions, batch.cu_seqlens);
    at::Tensor h = at::embedding(base.embedding, batch.tokens), p;
    for (int64_t l = 0; l < 2; ++l) {
      const at::Tensor x = norm(model.config, h, base.layers[l].input_norm);
      p = probabilities(base.layers[l], x, s);
      h = add_mlp(model.config, base.layers[l], h + at::linear(heads(base.layers[l], p, x), base.layers[l].o));
    }
    const Layer& follower = base.layers[2];
    const at::Tensor x = norm(model.config, h, follower.input_norm);
    const at::Tensor own = heads(follower, probabilities(follower, x, s), x);
    const at::Tensor shared = heads(follower, p.index_select(0, at::tensor({1, 0, 0, 3}, at::kLong)), x);
    features.push_back(at::cat({shared, x}, 1).to(at::kDouble));
    targets.push_back(at::linear(own - shared, follower.o).to(at::kDouble));
  }
  const at::Tensor f = at::cat(features), y = at::cat(targets);
  const at::Tensor ff = at::mm(f.t(), f);
  const at::Tensor diagonal =
      at::cat({at::full({24}, ff.diagonal().narrow(0, 0, 24).mean().item<double>(), at::kDouble),
               at::full({24}, ff.diagonal().narrow(0, 24, 24).mean().item<double>(), at::kDouble)});
  const at::Tensor w = at::linalg_solve(ff + at::diag(0.01 * diagonal), at::mm(f.t(), y));
  const std::map<std::string, at::Tensor> got(result.weights.begin(), result.weights.end());
  CHECK(relative(got.at("model.layers.2.self_attn.compensation.weight").to(at::kDouble), w.narrow(0, 24, 24).t()) <
        1e-4);
  CHECK(relative(got.at("model.layers.2.self_attn.o_proj.weight").to(at::kDouble) - base.layers[2].o.to(at::kDouble),
                 w.narrow(0, 0, 24).t()) < 1e-4);
  CHECK(result.layers[0].after < result.layers[0].before);
}
