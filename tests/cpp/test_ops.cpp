// The operators through their C++ functions; the numbers are tested in depth from Python.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <uniattn/ops.h>

#include "catch.h"

using at::Tensor;

namespace {

// Causal attention of one sequence with equally many query and key heads, in full: x [tokens, heads, head_dim].
Tensor plain_probs(const Tensor& q, const Tensor& k) {
  const int64_t tokens = q.size(0);
  const Tensor scores = at::einsum("ihd,jhd->hij", {q, k}) / std::sqrt(static_cast<double>(q.size(2)));
  const Tensor hidden = at::ones({tokens, tokens}, at::kBool).triu(1);
  return scores.masked_fill(hidden, -INFINITY).softmax(-1);
}

Tensor plain_out(const Tensor& probs, const Tensor& v) {
  return at::einsum("hij,jhd->ihd", {probs, v});
}

}  // namespace

TEST_CASE("a superblock differentiates exactly through the C++ interface", "[ops]") {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const auto leaf = [&] { return at::randn({7, 4, 8}, options).set_requires_grad(true); };
  const Tensor q = leaf(), k = leaf(), v = leaf(), v_1 = leaf(), v_2 = leaf();
  const Tensor weight = at::randn({3, 7, 4, 8}, options);
  const Tensor cu_seqlens = at::tensor({0, 7}, at::kInt);
  const Tensor head_map = at::tensor({2, 2, 0, 3}, at::kLong);

  const auto [out, probs] = uniattn::attention(q, k, v, cu_seqlens, 2);
  const Tensor out_1 = uniattn::attend(probs[0], v_1), out_2 = uniattn::attend(probs[1], v_2, head_map);
  const Tensor loss = (at::stack({out, out_1, out_2}) * weight).sum();

  const Tensor p = plain_probs(q, k);
  const Tensor expected = at::stack({plain_out(p, v), plain_out(p, v_1), plain_out(p.index_select(0, head_map), v_2)});
  const Tensor expected_loss = (expected * weight).sum();

  const auto grads = torch::autograd::grad({loss}, {q, k, v, v_1, v_2});
  const auto expected_grads = torch::autograd::grad({expected_loss}, {q, k, v, v_1, v_2});
  CHECK(at::allclose(loss, expected_loss, 1e-10, 0));
  for (size_t i = 0; i < grads.size(); ++i) CHECK(at::allclose(grads[i], expected_grads[i], 1e-9, 1e-11));
}

TEST_CASE("P kept or rebuilt, the gradients have the same bits", "[ops]") {
  const auto leaf = [&] { return at::randn({100, 4, 32}, at::kFloat).set_requires_grad(true); };
  const Tensor q = leaf(), k = leaf(), v = leaf(), v_1 = leaf();
  const Tensor cu_seqlens = at::tensor({0, 30, 100}, at::kInt);
  std::vector<Tensor> results[2];
  for (const bool keep : {false, true}) {
    const auto [out, probs] = uniattn::attention(q, k, v, cu_seqlens, 1, {.window = 20}, keep);
    CHECK((probs[0].tiles.numel() > 0) == keep);
    results[keep] = torch::autograd::grad({(out * uniattn::attend(probs[0], v_1)).sum()}, {q, k, v, v_1});
  }
  for (size_t i = 0; i < 4; ++i) CHECK(at::equal(results[0][i], results[1][i]));
  const Tensor budgeted = uniattn::attention(q, k, v, cu_seqlens, 1, {}, std::nullopt, 1000).probs[0].tiles;
  CHECK(budgeted.numel() == 0);
}

TEST_CASE("an operator names the argument that is wrong", "[ops]") {
  const Tensor x = at::zeros({3, 4});
  CHECK_THROWS_WITH(uniattn::rms_norm(x, at::ones({5}), 1e-5), contains("weight must be [D]"));
}
