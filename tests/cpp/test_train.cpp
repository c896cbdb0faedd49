#include <fstream>

#include "catch.h"
#include "checkpoint/retention.h"
#include "checkpoint/snapshot.h"
#include "commands/pipeline.h"
#include "support/error.h"
#include "tiny_model.h"
#include "train/trainer.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

Config tiny_run(const std::string& scratch, const std::string& name) {
  Config config;
  config.run = {.name = name, .dir = scratch + "/" + name, .seed = 7};
  config.model = {.path = scratch + "/model", .dtype = "float32"};
  config.plan = PlanConfig{.group = 2, .begin = 0, .end = 4};
  config.data.train = {{.path = "documents.ids", .format = "ids"}};
  config.data.max_length = 32;
  config.stages = {{.name = "compensation", .train = {"compensation"}, .max_steps = 4, .learning_rate = 1e-2},
                   {.name = "all", .train = {"all"}, .max_steps = 6, .learning_rate = 3e-3}};
  config.optimizer.micro_batch = 2;
  config.optimizer.accumulation = 2;
  config.checkpoint.every_steps = 3;
  return config;
}

std::vector<nlohmann::json> metrics_of(const Config& config) {
  std::ifstream in(config.run.dir + "/metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

Outcome train_tiny(const Config& config, const TokenShards& data, const TrainOptions& options = {}) {
  ProcessGroup alone(std::chrono::seconds(60));
  const RunDirectory run = create_run_directory(config, options.accept_changes);
  const ModelDirectory model = open_model_directory(config.model.path);
  const auto tokenizer = tokenizer_or_ids_only(model);
  return train({.config = config,
                .directory = run,
                .model = model,
                .tokenizer = *tokenizer,
                .train = data,
                .eval = config.data.eval.empty() ? std::nullopt : std::optional(data),
                .group = alone},
               options);
}

bool same_bits(const NamedTensors& a, const NamedTensors& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].first != b[i].first || !at::equal(a[i].second, b[i].second)) return false;
  return true;
}

}  // namespace

TEST_CASE("every split of a step gives the same losses and gradient norms", "[train]") {
  const TemporaryDirectory scratch;
  write_tiny_model(scratch / "model");
  const TokenShards data = random_shards(scratch / "data", 80, 32);
  std::vector<std::vector<nlohmann::json>> runs;
  for (const auto& [micro, accumulation] : {std::pair{4, 1}, {2, 2}, {1, 4}}) {
    Config config = tiny_run(scratch.path(), fmt::format("split-{}", micro));
    config.optimizer.micro_batch = micro;
    config.optimizer.accumulation = accumulation;
    REQUIRE(train_tiny(config, data) == Outcome::finished);
    runs.push_back(metrics_of(config));
    REQUIRE(runs.back().size() == 10);
  }
  for (size_t step = 0; step < 10; ++step)
    for (const char* key : {"loss", "grad_norm"})
      for (size_t other : {1, 2})
        CHECK(runs[other][step][key].get<double>() == Approx(runs[0][step][key].get<double>()).epsilon(2e-6));
}

TEST_CASE("packing changes nothing but the rows", "[train]") {
  const TemporaryDirectory scratch;
  write_tiny_model(scratch / "model");
  const TokenShards data = random_shards(scratch / "data", 12, 32);
  double norms[2], losses[2];
  for (const bool pack : {false, true}) {
    Config config = tiny_run(scratch.path(), pack ? "packed" : "single");
    config.data.pack = pack;
    config.optimizer.micro_batch = 16;  // all documents in one step either way
    config.optimizer.accumulation = 1;
    config.stages = {{.name = "all", .train = {"all"}, .max_steps = 1, .learning_rate = 1e-3}};
    train_tiny(config, data);
    norms[pack] = metrics_of(config)[0]["grad_norm"];
    losses[pack] = metrics_of(config)[0]["loss"];
  }
  CHECK(norms[0] == Approx(norms[1]).epsilon(1e-6));
  CHECK(losses[0] == Approx(losses[1]).epsilon(1e-6));
}

TEST_CASE("resuming is bit-exact, across stages and dtypes", "[train]") {
  const TemporaryDirectory scratch;
  write_tiny_model(scratch / "model");
  const TokenShards data = random_shards(scratch / "data", 80, 32);
  for (const std::string dtype : {"float32", "bfloat16"}) {
    Config straight = tiny_run(scratch.path(), "straight-" + dtype),
           broken = tiny_run(scratch.path(), "broken-" + dtype);
    straight.model.dtype = broken.model.dtype = dtype;
    REQUIRE(train_tiny(straight, data) == Outcome::finished);
    REQUIRE(train_tiny(broken, data, {.stop_after = 2}) == Outcome::stopped);  // inside the first stage
    REQUIRE(train_tiny(broken, data, {.stop_after = 2}) == Outcome::stopped);  // at its end
    REQUIRE(train_tiny(broken, data, {.stop_after = 1}) == Outcome::stopped);  // inside the second
    REQUIRE(train_tiny(broken, data) == Outcome::finished);
    const Snapshot a = read_snapshot(*newest_snapshot(straight.run.dir + "/checkpoints"));
    const Snapshot b = read_snapshot(*newest_snapshot(broken.run.dir + "/checkpoints"));
    CHECK(same_bits(a.weights, b.weights));
    CHECK(same_bits(a.moments, b.moments));
    CHECK(a.state == b.state);
    const auto left = metrics_of(straight), right = metrics_of(broken);
    REQUIRE(left.size() == right.size());
    for (size_t i = 0; i < left.size(); ++i) CHECK(left[i]["loss"] == right[i]["loss"]);
  }
}

TEST_CASE("stage `compensation` moves nothing else", "[train]") {
  const TemporaryDirectory scratch;
  write_tiny_model(scratch / "model");
  const TokenShards data = random_shards(scratch / "data", 40, 32);
  Config config = tiny_run(scratch.path(), "run");
  config.stages.resize(1);
  train_tiny(config, data);
  for (const auto& [name, tensor] : read_snapshot(*newest_snapshot(config.run.dir + "/checkpoints")).weights) {
    CHECK(name.find(".compensation.") != std::string::npos);
    CHECK(tensor.abs().max().item<float>() > 0);
  }
}

TEST_CASE("a snapshot trained on other data is refused", "[train]") {
  const TemporaryDirectory scratch;
  write_tiny_model(scratch / "model");
  const Config config = tiny_run(scratch.path(), "run");
  train_tiny(config, random_shards(scratch / "data", 40, 32), {.stop_after = 2});
  CHECK_THROWS_AS(train_tiny(config, random_shards(scratch / "other", 41, 32)), UsageError);
}

TEST_CASE("snapshots are whole or refused", "[train]") {
  const TemporaryDirectory scratch;
  const std::string directory = scratch / "checkpoints";
  const Snapshot snapshot{{{"done", 1}}, {{"w", at::randn({4, 4})}}, {{"m", at::randn({4})}}};
  for (int64_t step : {3, 6, 9}) write_snapshot(directory, step, snapshot);
  prune_snapshots(directory, {.last = 2});
  CHECK_FALSE(std::filesystem::exists(directory + "/step-3"));
  CHECK(*newest_snapshot(directory) == directory + "/step-9");
  CHECK(same_bits(read_snapshot(directory + "/step-9").weights, snapshot.weights));
  // A writer that was killed leaves a folder without a manifest: the one before counts.
  std::filesystem::create_directories(directory + "/step-12");
  CHECK(*newest_snapshot(directory) == directory + "/step-9");
  std::fstream file(directory + "/step-9/weights.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x55');
  file.close();
  CHECK_THROWS_WITH(read_snapshot(directory + "/step-9"), contains("weights.safetensors"));
  std::filesystem::resize_file(directory + "/step-6/moments.safetensors", 10);
  CHECK_THROWS_WITH(read_snapshot(directory + "/step-6"), contains("moments.safetensors"));
}
