// Activation checkpointing, trained sets, distillation and what keeps snapshots: the parts of a training run.
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <fstream>

#include "catch.h"
#include "checkpoint/retention.h"
#include "checkpoint/snapshot.h"
#include "config/difference.h"
#include "data/loader.h"
#include "model/recompute.h"
#include "support/error.h"
#include "tiny_model.h"
#include "train/crc32c.h"
#include "train/flops.h"
#include "train/objective.h"
#include "train/trained_set.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

// Every mode, two leaders whose superblocks interleave, a head map and both kinds of compensation.
SharingPlan mixed_plan() {
  SharingPlan plan = SharingPlan::all_full(8);
  plan.layers[2] = {.mode = Mode::share_probs, .leader = 0, .compensation = {Compensation::Kind::full, 0}};
  plan.layers[3] = {.mode = Mode::share_probs, .leader = 1, .head_map = {3, 0, 0, 2}};
  plan.layers[4] = {.mode = Mode::share_kv, .leader = 0, .compensation = {Compensation::Kind::low_rank, 3}};
  plan.layers[5] = {.mode = Mode::share_probs, .leader = 0};
  plan.layers[6] = {.mode = Mode::linear, .compensation = {Compensation::Kind::full, 0}};
  plan.layers[7] = {.mode = Mode::skip};
  return plan;
}

Decoder read_mixed(const std::string& directory, at::ScalarType dtype) {
  const ModelDirectory model = write_tiny_model(directory, {.layers = 8});
  Decoder decoder = Decoder::read(*open_model_tensors(directory), model.config, mixed_plan(), dtype);
  at::manual_seed(0);
  for (auto& [name, parameter] : decoder.parameters())
    if (is_compensation(name)) parameter->normal_(0, 0.1);
  return decoder;
}

void train_all(Decoder& model) {
  for (auto& [name, parameter] : model.parameters()) parameter->set_requires_grad(true);
}

std::map<std::string, at::Tensor> take_gradients(Decoder& model) {
  std::map<std::string, at::Tensor> gradients;
  for (auto& [name, parameter] : model.parameters()) {
    if (parameter->grad().defined()) gradients[name] = parameter->grad().clone();
    parameter->mutable_grad().reset();
  }
  return gradients;
}

StageConfig stage_with(const std::string& target, double weight, double temperature = 1) {
  return {.name = "stage", .distill = DistillConfig{.target = target, .weight = weight, .temperature = temperature}};
}

}  // namespace

TEST_CASE("activation checkpointing changes no bit of loss and gradients", "[train]") {
  const TemporaryDirectory scratch;
  const at::ScalarType dtype = GENERATE(at::kFloat, at::kBFloat16);
  Decoder model = read_mixed(scratch / "model", dtype);
  const TokenShards data = random_shards(scratch / "data", 6, 30);
  const Batch batch = make_batch(data.documents());
  const bool frozen_base = GENERATE(false, true);
  for (auto& [name, parameter] : model.parameters())
    parameter->set_requires_grad(!frozen_base || is_compensation(name));
  std::map<std::string, at::Tensor> gradients[2];
  at::Tensor losses[2];
  for (const bool checkpoint : {false, true}) {
    model.checkpoint_activations = checkpoint;
    std::vector<at::Tensor> states;
    const at::Tensor hidden = model.hidden(batch, &states);
    losses[checkpoint] = hidden.to(at::kFloat).square().sum() + states[4].to(at::kFloat).sum();
    losses[checkpoint].backward();
    gradients[checkpoint] = take_gradients(model);
  }
  CHECK(at::equal(losses[0], losses[1]));
  REQUIRE(gradients[0].size() == gradients[1].size());
  CHECK(gradients[0].size() >= (frozen_base ? 3u : 40u));
  for (const auto& [name, gradient] : gradients[0]) {
    INFO(name);
    CHECK(at::equal(gradient, gradients[1].at(name)));
  }
}

TEST_CASE("recompute keeps the inputs alone and leaves out what needs no gradient", "[train]") {
  const at::Tensor x = at::randn({3}, at::kDouble).set_requires_grad(true), y = at::randn({3}, at::kDouble);
  int runs = 0;
  const auto cube = [&runs](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
    ++runs;
    return {in[0].pow(3) * in[1], in[1] * 2};
  };
  const std::vector<at::Tensor> out = recompute(cube, {x, y});
  CHECK(runs == 1);
  out[0].sum().backward();
  CHECK(runs == 2);
  CHECK(at::allclose(x.grad(), 3 * x.detach().square() * y));
  CHECK_FALSE(y.grad().defined());
}

TEST_CASE("a trained set is a preset or patterns of names", "[train]") {
  const std::string attention = "model.layers.3.self_attn.v_proj.weight", head = "lm_head.weight";
  const std::string compensation = "model.layers.3.self_attn.compensation.down.weight";
  CHECK(is_trained({.kind = "all"}, head));
  CHECK(is_trained({.kind = "compensation"}, compensation));
  CHECK_FALSE(is_trained({.kind = "compensation"}, attention));
  const TrainedSet patterns{.kind = "patterns", .patterns = {"model.layers.[3-5].self_attn.*", "*norm*"}};
  CHECK(is_trained(patterns, attention));
  CHECK(is_trained(patterns, "model.norm.weight"));
  CHECK_FALSE(is_trained(patterns, "model.layers.2.self_attn.v_proj.weight"));
  CHECK_FALSE(is_trained(patterns, head));
  CHECK_THROWS_WITH(check_trained_set({.kind = "patterns", .patterns = {"*v_prj*"}}, {attention, head}),
                    contains("*v_prj*"));
  CHECK_THROWS_AS(check_trained_set({.kind = "compensation"}, {attention, head}), UsageError);
}

TEST_CASE("distillation of attention is the relative distance of the streams", "[train]") {
  const TemporaryDirectory scratch;
  Decoder student = read_mixed(scratch / "model", at::kFloat);
  const Decoder teacher =
      Decoder::read(*open_model_tensors(scratch / "model"), student.config, SharingPlan::all_full(8), at::kFloat);
  const Batch batch = make_batch(random_shards(scratch / "data", 5, 30).documents());
  const StepTokens step{.all = batch.tokens.size(0), .supervised = batch.supervised};
  std::vector<at::Tensor> own, wanted;
  student.hidden(batch, &own);
  teacher.hidden(batch, &wanted);
  double expected = 0;
  for (const int64_t layer : {2, 3, 4, 5, 6, 7})
    expected +=
        ((own[layer] - wanted[layer]).square().sum(-1) / wanted[layer].square().sum(-1)).mean().item<double>() / 6;
  train_all(student);
  const Loss loss = Objective(stage_with("attention", 1), student, &teacher)(batch, step);
  CHECK(loss.distillation.item<double>() == Approx(expected).epsilon(1e-5));
  CHECK(loss.total.item<double>() == Approx(expected).epsilon(1e-5));
  loss.total.backward();
  const auto gradients = take_gradients(student);
  CHECK_FALSE(gradients.contains("lm_head.weight"));  // cross-entropy is only watched
  CHECK(gradients.at("model.layers.2.self_attn.compensation.weight").abs().max().item<float>() > 0);
  CHECK_THROWS_AS(Objective(stage_with("attention", 1), teacher, &teacher), UsageError);
}

TEST_CASE("distillation of logits is the Kullback-Leibler divergence over supervised tokens", "[train]") {
  const TemporaryDirectory scratch;
  Decoder student = read_mixed(scratch / "model", at::kFloat);
  student.config.final_softcap = GENERATE(0.0, 2.0);
  Decoder teacher =
      Decoder::read(*open_model_tensors(scratch / "model"), student.config, SharingPlan::all_full(8), at::kFloat);
  const Batch batch = make_batch(random_shards(scratch / "data", 5, 30).documents());
  const StepTokens step{.all = batch.tokens.size(0), .supervised = batch.supervised};
  const double temperature = 2;
  const auto log_softmax = [&](const Decoder& model) {
    at::Tensor logits = at::matmul(model.hidden(batch), model.head.t());
    if (const double cap = model.config.final_softcap; cap > 0) logits = cap * (logits / cap).tanh();
    return at::log_softmax(logits / temperature, -1);
  };
  train_all(student);
  const at::Tensor own = log_softmax(student), wanted = log_softmax(teacher);
  const at::Tensor rows = batch.labels.ne(-100);
  const at::Tensor expected = 4 * (wanted.exp() * (wanted - own)).sum(-1).masked_select(rows).mean();
  expected.backward();
  const auto expected_gradients = take_gradients(student);
  const Loss loss = Objective(stage_with("logits", 1, temperature), student, &teacher)(batch, step);
  CHECK(loss.total.item<double>() == Approx(expected.item<double>()).epsilon(1e-5));
  loss.total.backward();
  const auto gradients = take_gradients(student);
  REQUIRE(gradients.size() == expected_gradients.size());
  for (const auto& [name, gradient] : expected_gradients) {
    INFO(name);
    CHECK((gradients.at(name) - gradient).norm().item<double>() <= 1e-4 * gradient.norm().item<double>() + 1e-9);
  }
  const Loss mixed = Objective(stage_with("logits", 0.25, temperature), student, &teacher)(batch, step);
  CHECK(mixed.total.item<double>() ==
        Approx(0.25 * mixed.distillation.item<double>() + 0.75 * mixed.cross_entropy.item<double>()).epsilon(1e-6));
}

TEST_CASE("the best snapshots stay besides the newest", "[train]") {
  const TemporaryDirectory scratch;
  const std::string directory = scratch / "checkpoints";
  const auto write = [&](int64_t step, std::optional<double> loss) {
    Snapshot snapshot{.state = {{"done", step}}, .weights = {{"w", at::ones({2})}}, .moments = {}};
    if (loss) snapshot.state["held_out_loss"] = *loss;
    write_snapshot(directory, step, snapshot);
  };
  write(1, 3.0), write(2, 1.0), write(3, std::nullopt), write(4, 2.0), write(5, 2.5), write(6, std::nullopt);
  std::filesystem::create_directories(directory + "/step-7.partial");
  prune_snapshots(directory, {.last = 1, .best = 2});
  std::vector<int64_t> left;
  for (const auto& [step, path] : list_snapshots(directory)) left.push_back(step);
  CHECK(left == std::vector<int64_t>{2, 4, 6});
  CHECK_FALSE(std::filesystem::exists(directory + "/step-7.partial"));
}

TEST_CASE("changed keys are told apart by what they change", "[config]") {
  Config before;
  before.stages = {{.name = "all", .max_steps = 3, .learning_rate = 1e-3}};
  Config after = before;
  CHECK(changed_keys(before, after).empty());
  after.optimizer.accumulation = 6;
  after.stages[0].learning_rate = 1e-4;
  after.plan = PlanConfig{.group = 2, .begin = 0, .end = 4};
  after.samples.prompts = {"once"};
  std::map<std::string, ChangedKey::Effect> effects;
  for (const ChangedKey& change : changed_keys(before, after)) effects[change.key] = change.effect;
  CHECK(effects.at("optimizer.accumulation") == ChangedKey::Effect::none);
  CHECK(effects.at("samples.prompts") == ChangedKey::Effect::none);
  CHECK(effects.at("stages.0.learning_rate") == ChangedKey::Effect::training);
  CHECK(effects.at("plan.group") == ChangedKey::Effect::start);
}

TEST_CASE("CRC-32C has the values of RFC 3720", "[train]") {
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
  CHECK(crc32c("123456789") == 0xe3069283u);
}

TEST_CASE("FLOPs of a step are those of its products", "[train]") {
  const TemporaryDirectory scratch;
  const ModelConfig config = write_tiny_model(scratch / "model").config;
  const int64_t d = config.hidden_size, q = config.num_heads * config.head_dim,
                kv = config.num_kv_heads * config.head_dim;
  const int64_t mlp = 3 * d * config.intermediate_size, head = config.vocab_size * d, layers = config.num_layers;
  const double weights = static_cast<double>(layers * (2 * d * q + 2 * d * kv + mlp) + head);
  const FlopCounter full(config, SharingPlan::all_full(layers), {.kind = "all"}, 16);
  // Two documents of 3 and 5 tokens see 6 and 15 keys in all.
  CHECK(full.count({3, 5}).dense == Approx(8 * (6 * weights + 12.0 * static_cast<double>(layers * q * 16))));
  CHECK(full.count({3, 5}).causal == Approx(8 * 6 * weights + 12.0 * static_cast<double>(layers * q * 21)));
  const SharingPlan shared = SharingPlan::regular(layers, Mode::share_probs, 2, 0, layers, {});
  const double fewer = static_cast<double>(layers / 2 * (d * q + d * kv));
  const FlopCounter half(config, shared, {.kind = "all"}, 16);
  CHECK(half.count({3, 5}).causal == Approx(8 * 6 * (weights - fewer) + 9.0 * static_cast<double>(layers * q * 21)));
}
