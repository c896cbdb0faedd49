#include <ATen/core/grad_mode.h>

#include <cstdlib>

#include "catch.h"
#include "data/loader.h"
#include "inference/engine.h"
#include "model/decoder.h"
#include "model/footprint.h"
#include "support/error.h"
#include "tiny_model.h"

using namespace uniattn;
using namespace uniattn::testing;
using nlohmann::json;

namespace {

SharingPlan shared_plan() {
  SharingPlan plan = SharingPlan::all_full(4);
  plan.layers[1] = {
      .mode = Mode::share_probs, .leader = 0, .compensation = {Compensation::Kind::full, 0}, .head_map = {}};
  plan.layers[3] = {.mode = Mode::share_probs,
                    .leader = 2,
                    .compensation = {Compensation::Kind::low_rank, 3},
                    .head_map = {2, 2, 0, 1}};
  return plan;
}

// A unified model whose compensations are not zero.
Decoder read_shared(const ModelDirectory& model) {
  Decoder decoder = Decoder::read(*open_model_tensors(model.path), model.config, shared_plan(), at::kFloat);
  decoder.layers[1].compensation.normal_(0, 0.1);
  decoder.layers[3].compensation_up.normal_(0, 0.1);
  return decoder;
}

}  // namespace

TEST_CASE("both dialects of config.json give the same model", "[model]") {
  json published = tiny_config();
  published["rope_scaling"] = {{"rope_type", "llama3"},
                               {"factor", 8.0},
                               {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0},
                               {"original_max_position_embeddings", 64}};
  json modern = tiny_config();
  modern.erase("rope_theta");
  modern.erase("torch_dtype");
  modern["dtype"] = "float32";
  modern["rope_parameters"] = published["rope_scaling"];
  modern["rope_parameters"]["rope_theta"] = 10000.0;
  const ModelConfig a = parse_model_config(published), b = parse_model_config(modern);
  CHECK(a.rope_theta == b.rope_theta);
  CHECK(a.dtype == b.dtype);
  CHECK(b.rope_scaling.kind == RopeScaling::Kind::llama3);
  CHECK(b.rope_scaling.factor == 8.0);
  CHECK(b.rope_scaling.original_max_positions == 64);
}

TEST_CASE("configs that need what this program lacks are refused by name", "[model]") {
  auto refused = [](const char* key, const json& value) {
    json config = tiny_config();
    config[key] = value;
    CHECK_THROWS_WITH(parse_model_config(config), contains(key));
  };
  refused("attention_bias", true);
  refused("mlp_bias", true);
  refused("quantization_config", {{"quant_method", "awq"}});
  refused("model_type", "qwen2");
  refused("num_key_value_heads", 3);
  refused("hidden_size", 0);
  refused("vocab_size", "many");
  json config = tiny_config();
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}};
  CHECK_THROWS_WITH(parse_model_config(config), contains("yarn"));
}

TEST_CASE("a plan survives config.json", "[model]") {
  const ModelConfig model = parse_model_config(tiny_config());
  json config = tiny_config();
  config["uniattn"] = describe_plan(shared_plan());
  CHECK(parse_plan(config, model) == shared_plan());
  config["uniattn"]["version"] = 2;
  CHECK_THROWS_WITH(parse_plan(config, model), contains("version"));
  config["uniattn"] = describe_plan(shared_plan());
  config["uniattn"]["layers"][1]["leader"] = 3;
  CHECK_THROWS_AS(parse_plan(config, model), Error);

  SharingPlan mixed = SharingPlan::all_full(4);
  mixed.layers[0].num_kv_heads = 1;
  mixed.layers[1] = {.mode = Mode::share_kv, .leader = 0, .leader_mask = true};
  mixed.layers[2] = {.mode = Mode::linear, .compensation = {Compensation::Kind::full, 0}};
  mixed.layers[3] = {.mode = Mode::skip};
  config["uniattn"] = describe_plan(mixed);
  CHECK(config["uniattn"]["layers"][0] == json{{"mode", "full"}, {"num_kv_heads", 1}});
  CHECK(config["uniattn"]["layers"][1] == json{{"mode", "share_kv"}, {"leader", 0}, {"mask", "leader"}});
  CHECK(parse_plan(config, model) == mixed);
  config["uniattn"]["layers"][1]["mask"] = "own";
  CHECK_THROWS_WITH(parse_plan(config, model), contains("layers[1].mask is \"own\""));
}

TEST_CASE("the published configs are read, with their parameter counts", "[model]") {
  const char* material = std::getenv("UNIATTN_MATERIAL");
  if (!material) {
    WARN("skipped: UNIATTN_MATERIAL is not set");
    return;
  }
  const std::vector<std::pair<std::string, int64_t>> expected = {{"llama-3.1-8b-modelstock", 8030261248},
                                                                 {"llama-2-7b-chat", 6738415616},
                                                                 {"mistral-7b-instruct-v0.3", 7248023552},
                                                                 {"gemma-2-9b", 9241705984}};
  for (const auto& [name, parameters] : expected) {
    const ModelDirectory model = open_model_directory(std::string(material) + "/configs/" + name);
    CHECK(total_parameters(model.config, model.plan) == parameters);
  }
  const ModelDirectory llama = open_model_directory(std::string(material) + "/configs/llama-3.1-8b-modelstock");
  const SharingPlan plan = SharingPlan::regular(32, Mode::share_probs, 4, 16, 33, {Compensation::Kind::full, 0});
  CHECK(plan.followers().size() == 12);
  CHECK(total_kv_bytes(llama.config, plan, 2) * 10000 == total_kv_bytes(llama.config, llama.plan, 2) * 8125);
}

TEST_CASE("decoding with caches gives the logits of reading it all at once", "[model]") {
  const TemporaryDirectory scratch;
  const ModelDirectory model = write_tiny_model(scratch / "model");
  const Decoder decoder = read_shared(model);
  const std::vector<int64_t> tokens = {5, 9, 1, 33, 2, 17, 20, 8, 4};
  CachedDecoder cached(decoder);
  const int64_t stepwise = cached.cache().open(), whole = cached.cache().open();
  at::Tensor logits = cached.read({{stepwise, {tokens.begin(), tokens.begin() + 4}}});
  for (size_t i = 4; i < tokens.size(); ++i) logits = cached.read({{stepwise, {tokens[i]}}});
  // 2 full layers keep K and V, 2 followers V alone: 6 tensors of kv_heads x page x head_dim floats.
  CHECK(cached.cache().bytes_used() == 6 * 2 * kPageSize * 6 * 4);
  CHECK(cached.cache().bytes_used() == kPageSize * total_kv_bytes(model.config, decoder.plan, 4));
  CHECK(at::allclose(logits, cached.read({{whole, tokens}}), 1e-4, 1e-5));
  cached.cache().close(stepwise);
  cached.cache().close(whole);
  CHECK(cached.cache().bytes_used() == 0);
}

TEST_CASE("generation stops at the limit, is greedy at temperature 0 and repeats with its seed", "[model]") {
  const TemporaryDirectory scratch;
  const Decoder decoder = read_shared(write_tiny_model(scratch / "model"));
  const auto generate = [&](const SamplingOptions& sampling) {
    Engine engine(decoder);
    std::vector<int64_t> tokens;
    run_to_end(engine, {{{1, 7, 12}, 12, sampling, {2}, [&](int64_t token) {
                           tokens.push_back(token);
                           return true;
                         }}});
    return tokens;
  };
  CHECK(generate({}).size() <= 12);
  CHECK(generate({}) == generate({.seed = 9}));
  const SamplingOptions sampled{.temperature = 1.0, .seed = 3};
  CHECK(generate(sampled) == generate(sampled));
  Engine engine(decoder);
  CHECK_THROWS_AS(engine.add({{}, 12, {}, {}, {}}), UsageError);
  CHECK_THROWS_AS(engine.add({{40}, 12, {}, {}, {}}), UsageError);
}

TEST_CASE("a sequence's losses do not depend on its neighbours in the batch", "[model]") {
  const TemporaryDirectory scratch;
  const Decoder decoder = read_shared(write_tiny_model(scratch / "model"));
  const TokenShards data = random_shards(scratch / "data", 3, 20);
  const at::NoGradGuard no_grad;
  std::vector<Document> documents;
  std::vector<at::Tensor> alone;
  for (int64_t i = 0; i < data.size(); ++i) {
    documents.push_back(data.document(i));
    alone.push_back(decoder.token_losses(make_batch({documents.back()})));
  }
  CHECK(at::allclose(decoder.token_losses(make_batch(documents)), at::cat(alone), 1e-5, 1e-6));
}

TEST_CASE("weights of the wrong shape, missing or not finite are named", "[model]") {
  const TemporaryDirectory scratch;
  const ModelDirectory model = write_tiny_model(scratch / "model");
  const SafetensorsFile source(scratch / "model/model.safetensors");
  NamedTensors tensors;
  for (const std::string& name : source.names()) tensors.emplace_back(name, source.tensor(name).clone());
  auto rewritten = [&](const std::string& name, auto change) {
    NamedTensors changed;
    for (const auto& [key, tensor] : tensors) {
      if (key != name)
        changed.emplace_back(key, tensor);
      else if (const at::Tensor replaced = change(tensor.clone()); replaced.defined())
        changed.emplace_back(key, replaced);
    }
    write_safetensors(scratch / "changed.safetensors", changed);
    const SafetensorsFile file(scratch / "changed.safetensors");
    Decoder::read(file, model.config, model.plan, at::kFloat);
  };
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  CHECK_THROWS_WITH(rewritten(name, [](at::Tensor t) { return t.narrow(0, 0, 5).contiguous(); }), contains(name));
  CHECK_THROWS_WITH(rewritten(name, [](at::Tensor) { return at::Tensor(); }), contains(name));
  CHECK_THROWS_WITH(rewritten(name, [](at::Tensor t) { return t.index_put_({at::tensor(3)}, NAN); }), contains(name));
}
