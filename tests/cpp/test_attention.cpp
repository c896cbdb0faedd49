// One plan with every mode, its gradients against the plain formulas under autograd, and decoding with caches.
#include <ATen/core/grad_mode.h>

#include "catch.h"
#include "inference/cached_decoder.h"
#include "model/attention.h"
#include "model/footprint.h"
#include "tiny_model.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

SharingPlan every_mode() {
  SharingPlan plan = SharingPlan::all_full(6);
  plan.layers[0].num_kv_heads = 1;
  plan.layers[1] = {.mode = Mode::share_probs, .leader = 0, .head_map = {2, 2, 0, 1}, .leader_mask = true};
  plan.layers[2] = {
      .mode = Mode::share_kv, .leader = 0, .compensation = {Compensation::Kind::low_rank, 3}, .leader_mask = true};
  plan.layers[3] = {.mode = Mode::linear, .compensation = {Compensation::Kind::full, 0}};
  plan.layers[4] = {.mode = Mode::skip};
  plan.layers[5] = {.mode = Mode::share_kv, .leader = 0, .leader_mask = true};
  return plan;
}

// In float64, with compensations that are not zero and a leader that slides.
Decoder read_every_mode(const std::string& directory) {
  ModelDirectory model = write_tiny_model(directory, {.layers = 6});
  model.config.windows[0] = 5;
  every_mode().validate(model.config.plan_limits());
  Decoder decoder = Decoder::read(*open_model_tensors(directory), model.config, every_mode(), at::kDouble);
  decoder.layers[2].compensation_up.normal_(0, 0.1);
  decoder.layers[3].compensation.normal_(0, 0.1);
  return decoder;
}

// What a layer leaves for its followers: P [heads, T, T], k and v [T, kv_heads, head_dim].
struct Lent {
  at::Tensor p, k, v;
};

at::Tensor plain_norm(const Decoder& model, const at::Tensor& x, const at::Tensor& weight) {
  return x * (x.square().mean(-1, true) + model.config.norm_eps).rsqrt() * weight;
}

at::Tensor plain_heads(const Decoder& model, const at::Tensor& x, const at::Tensor& weight) {
  return at::matmul(x, weight.t()).view({x.size(0), -1, model.config.head_dim});
}

at::Tensor plain_rotary(const at::Tensor& x, const Sequences& sequences) {
  const at::Tensor cos = sequences.cos.unsqueeze(1).to(at::kDouble), sin = sequences.sin.unsqueeze(1).to(at::kDouble);
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

// [T, kv_heads, head_dim] -> [heads, T, head_dim]
at::Tensor per_query_head(const Decoder& model, const at::Tensor& x) {
  return x.repeat_interleave(model.config.num_heads / x.size(1), 1).transpose(0, 1);
}

at::Tensor plain_probs(const Decoder& model, const at::Tensor& q, const at::Tensor& k, int64_t window) {
  const at::Tensor scores = at::matmul(q.transpose(0, 1), per_query_head(model, k).transpose(1, 2));
  const at::Tensor index = at::arange(q.size(0));
  const at::Tensor distance = index.unsqueeze(1) - index;
  const at::Tensor hidden = distance.lt(0).logical_or(distance.ge(window > 0 ? window : q.size(0)));
  return (scores * model.config.attention_scale).masked_fill(hidden, -INFINITY).softmax(-1);
}

at::Tensor plain_attention(const Decoder& model, int64_t i, const at::Tensor& x, const Sequences& sequences,
                           std::map<int64_t, Lent>& lent) {
  const Layer& w = model.layers[i];
  const LayerPlan& plan = model.plan.layers[i];
  at::Tensor out = at::zeros_like(x);
  if (w.compensation.defined()) out = out + at::matmul(x, w.compensation.t());
  if (w.compensation_up.defined())
    out = out + at::matmul(at::matmul(x, w.compensation_down.t()), w.compensation_up.t());
  if (plan.mode == Mode::linear || plan.mode == Mode::skip) return out;
  Lent own = plan.leader >= 0 ? lent.at(plan.leader) : Lent{};
  if (w.v.defined()) own.v = plain_heads(model, x, w.v);
  if (w.k.defined()) own.k = plain_rotary(plain_heads(model, x, w.k), sequences);
  if (w.q.defined())
    own.p = plain_probs(model, plain_rotary(plain_heads(model, x, w.q), sequences), own.k,
                        model.config.windows[plan.leader >= 0 ? plan.leader : i]);
  if (!plan.head_map.empty()) own.p = own.p.index_select(0, at::tensor(plan.head_map));
  lent[i] = own;
  const at::Tensor heads = at::matmul(own.p, per_query_head(model, own.v)).transpose(0, 1).flatten(1);
  return out + at::matmul(heads, w.o.t());
}

// Final hidden states of one sequence.
at::Tensor plain_hidden(const Decoder& model, const at::Tensor& tokens) {
  const Sequences sequences = make_sequences(model.config, at::arange(tokens.size(0)), {});
  std::map<int64_t, Lent> lent;
  at::Tensor stream = at::embedding(model.embedding, tokens);
  for (int64_t i = 0; i < model.config.num_layers; ++i) {
    const Layer& w = model.layers[i];
    stream = stream + plain_attention(model, i, plain_norm(model, stream, w.input_norm), sequences, lent);
    const at::Tensor x = plain_norm(model, stream, w.mlp_norm);
    stream = stream + at::matmul(at::silu(at::matmul(x, w.gate.t())) * at::matmul(x, w.up.t()), w.down.t());
  }
  return plain_norm(model, stream, model.final_norm);
}

// d (hidden . direction) / d parameter of all parameters; undefined where hidden does not depend on one.
std::vector<at::Tensor> gradients(Decoder& model, const at::Tensor& hidden, const at::Tensor& direction) {
  (hidden * direction).sum().backward();
  std::vector<at::Tensor> result;
  for (auto& [name, parameter] : model.parameters()) {
    result.push_back(parameter->grad());
    parameter->mutable_grad().reset();
  }
  return result;
}

}  // namespace

TEST_CASE("every mode has the plain formulas' outputs and gradients", "[attention]") {
  const TemporaryDirectory scratch;
  Decoder model = read_every_mode(scratch / "model");
  for (auto& [name, parameter] : model.parameters()) parameter->set_requires_grad(true);
  const at::Tensor tokens = at::randint(0, 40, {16}, at::kLong), positions = at::cat({at::arange(9), at::arange(7)});
  const Batch batch{
      .tokens = tokens, .labels = {}, .positions = positions, .cu_seqlens = at::tensor({0, 9, 16}, at::kInt)};
  const at::Tensor ours = model.hidden(batch);
  const at::Tensor plain =
      at::cat({plain_hidden(model, tokens.narrow(0, 0, 9)), plain_hidden(model, tokens.narrow(0, 9, 7))});
  REQUIRE(at::allclose(ours, plain, 1e-9, 1e-10));
  const at::Tensor direction = at::randn(ours.sizes(), ours.options().requires_grad(false));
  const auto found = gradients(model, ours, direction), expected = gradients(model, plain, direction);
  const auto parameters = model.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    INFO(parameters[i].first);
    REQUIRE(found[i].defined() == expected[i].defined());
    if (expected[i].defined()) CHECK(at::allclose(found[i], expected[i], 1e-8, 1e-9));
  }
}

TEST_CASE("every mode decodes with caches as it reads at once", "[attention]") {
  const TemporaryDirectory scratch;
  const Decoder model = read_every_mode(scratch / "model");
  const std::vector<int64_t> tokens = {5, 9, 1, 33, 2, 17, 20, 8, 4};
  CachedDecoder cached(model);
  const int64_t stepwise = cached.cache().open(), whole = cached.cache().open();
  at::Tensor logits = cached.read({{stepwise, {tokens.begin(), tokens.begin() + 3}}});
  for (size_t i = 3; i < tokens.size(); ++i) logits = cached.read({{stepwise, {tokens[i]}}});
  // The leader keeps one key and one value head, its first follower two value heads, the others nothing.
  CHECK(cached.cache().bytes_used() == 4 * kPageSize * 6 * 8);
  CHECK(cached.cache().bytes_used() == kPageSize * total_kv_bytes(model.config, model.plan, 8));
  CHECK(at::allclose(logits, cached.read({{whole, tokens}}), 1e-5, 1e-6));
}

TEST_CASE("the last follower takes what its leader left", "[attention]") {
  const TemporaryDirectory scratch;
  const Decoder model = read_every_mode(scratch / "model");
  const at::NoGradGuard no_grad;
  const Sequences sequences = make_sequences(model.config, at::arange(4), at::tensor({0, 4}, at::kInt));
  const at::Tensor x = at::randn({4, model.config.hidden_size}, at::kDouble);
  std::map<int64_t, LeaderState> leaders;
  for (int64_t i = 0; i < 6; ++i) {
    const at::Tensor heads = attention_heads(model.config, model.plan, i, model.layers[i], x, sequences, leaders);
    CHECK(heads.defined() == (i != 3 && i != 4));
    CHECK(leaders.contains(0) == (i < 5));
    if (i == 0) CHECK(leaders[0].probs.size() == 1);
    if (i == 0) CHECK(leaders[0].k.size(1) == 1);
  }
}
