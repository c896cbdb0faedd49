// The YAML configuration: strict reading with placed errors, overrides and validation.
#include "config/config.h"

#include "catch.h"
#include "config/nearest.h"
#include "config/plan_config.h"
#include "support/error.h"
#include "temporary_yaml.h"

using namespace uniattn;

namespace {

using Overrides = std::vector<std::string>;

const char* const kYaml = R"(run: {name: test, dir: runs/test}
model:
  path: some/model
  dtype: float32
plan: {group: 2, begin: 1, end: 9, compensation: full}
calibration:
  data: [{path: a.json, format: alpaca}]
  ridge: auto
data:
  train:
    - {path: a.json, format: alpaca, weight: 1}
  max_length: 64
stages:
  - {name: compensation, train: compensation, epochs: 1, learning_rate: 7.0e-6}
  - name: all
    max_steps: 5
    learning_rate: 7e-6
parallel: {}
)";

std::string with(const std::string& what, const std::string& by) {
  std::string text = kYaml;
  const size_t at = text.find(what);
  if (at == std::string::npos) throw std::logic_error("the test's YAML has no '" + what + "'");
  return text.replace(at, what.size(), by);
}

// The message of the UsageError for `text`, the file's path shown as FILE.
std::string error_of(const std::string& text, const Overrides& overrides = {}) {
  const TemporaryFile file(text);
  try {
    load_config(file.path(), overrides);
  } catch (const UsageError& error) {
    std::string message = error.what();
    const size_t at = message.find(file.path());
    return at == std::string::npos ? message : message.replace(at, file.path().size(), "FILE");
  }
  return "no error";
}

std::string error_with(const Overrides& overrides) {
  return error_of(kYaml, overrides);
}

}  // namespace

TEST_CASE("a configuration is read with its defaults", "[config]") {
  const Config config = load_text(kYaml);
  CHECK(config.run.name == "test");
  CHECK(config.run.seed == 42);
  CHECK(config.model.dtype == "float32");
  CHECK(config.plan->group == 2);
  CHECK(config.plan->compensation.kind == "full");
  CHECK(config.calibration->data.at(0) == DataSource{.path = "a.json", .format = "alpaca"});
  CHECK_FALSE(config.calibration->ridge);
  CHECK(config.data.train.at(0).weight == 1.0);
  REQUIRE(config.stages.size() == 2);
  CHECK(config.stages[0].learning_rate == 7e-6);
  CHECK(config.stages[1] == StageConfig{.name = "all", .max_steps = 5, .learning_rate = 7e-6});
  CHECK(config.parallel.timeout_seconds == 600);
}

TEST_CASE("a minimal configuration", "[config]") {
  const Config config = load_text("run: {name: a, dir: b}\nmodel: {path: c}\n");
  CHECK_FALSE(config.plan);
  CHECK_FALSE(config.calibration);
  CHECK(config.stages.empty());
  CHECK(config.optimizer == OptimizerConfig{});
}

TEST_CASE("empty sections are as good as none", "[config]") {
  const std::string minimal = "run: {name: a, dir: b}\nmodel: {path: c}\n";
  for (const char* rest : {"plan: {}", "plan:", "calibration: ~", "stages:", "stages: []", "data:", "parallel:"}) {
    INFO(rest);
    CHECK(load_text(minimal + rest) == load_text(minimal));
  }
}

TEST_CASE("values of every type", "[config]") {
  const std::string wide_plan = with("compensation: full}", "compensation: {rank: 16}}");
  CHECK(load_text(wide_plan).plan->compensation == CompensationConfig{.kind = "low_rank", .rank = 16});
  CHECK(load_text(kYaml, {"calibration.ridge=0.5"}).calibration->ridge == 0.5);
  CHECK(load_text(kYaml, {"calibration.ridge=1"}).calibration->ridge == 1.0);
  CHECK_FALSE(load_text(kYaml, {"data.pack=false"}).data.pack);
  CHECK(load_text(kYaml, {"run.name=7"}).run.name == "7");
  CHECK(load_text(kYaml, {"run.name='a: #b'"}).run.name == "a: #b");
  CHECK(load_text(kYaml, {"optimizer.eps=.5e-7"}).optimizer.eps == .5e-7);
}

TEST_CASE("types are strict, and errors say where", "[config]") {
  CHECK(error_of(with("max_length: 64", "max_length: 64.0")) ==
        "FILE:12: data.max_length: expected an integer, found '64.0'");
  CHECK(error_of(with("max_length: 64", "max_length: \"64\"")) ==
        "FILE:12: data.max_length: expected an integer, found the string \"64\"");
  CHECK(error_of(with("max_length: 64", "max_length:")) ==
        "FILE:12: data.max_length: expected an integer, found nothing");
  CHECK(error_of(with("max_length: 64", "max_length: 99999999999999999999")) ==
        "FILE:12: data.max_length: expected an integer, found '99999999999999999999'");
  CHECK(error_of(with("max_length: 64", "pack: yes")) == "FILE:12: data.pack: expected true or false, found 'yes'");
  CHECK(error_of(with("learning_rate: 7e-6", "learning_rate: fast")) ==
        "FILE:17: stages.1.learning_rate: expected a number, found 'fast'");
  CHECK(error_of(with("learning_rate: 7e-6", "learning_rate: nan")) ==
        "FILE:17: stages.1.learning_rate: expected a number, found 'nan'");
  CHECK(error_of(with("ridge: auto", "ridge: automatic")) ==
        "FILE:8: calibration.ridge: expected a number or `auto`, found 'automatic'");
  CHECK(error_of(with("path: some/model", "path: [a]")) == "FILE:3: model.path: expected a string, found a list");
  CHECK(error_of(with("compensation: full}", "compensation: half}")) ==
        "FILE:5: plan.compensation: expected none, full or {rank: R}, found 'half'");
  CHECK_THAT(
      error_of(with("parallel: {}", "parallel: 8")),
      contains(
          "FILE:18: parallel: expected a mapping with the keys shard, replicas, offload, timeout_seconds, found '8'"));
  CHECK(error_of(with("data: [{path: a.json, format: alpaca}]", "data: a.json")) ==
        "FILE:7: calibration.data: expected a list, found 'a.json'");
  CHECK_THAT(error_of("- a\n"), contains("FILE:1: expected a mapping with the keys run, model"));
  CHECK_THAT(error_of(""), contains("FILE:1: run.name: is missing or empty"));
}

TEST_CASE("an unknown key names the nearest known one", "[config]") {
  CHECK_THAT(error_of(with("  max_length: 64", "  max_lenght: 64")),
             contains("FILE:12: data.max_lenght: unknown key; did you mean 'max_length'?"));
  CHECK_THAT(error_of(with("parallel: {}", "optimiser: {}")),
             contains("FILE:18: optimiser: unknown key; did you mean 'optimizer'?"));
  CHECK_THAT(error_of(with("    max_steps: 5", "    max_step: 5")),
             contains("FILE:16: stages.1.max_step: unknown key; did you mean 'max_steps'?"));
  CHECK_THAT(error_of(with("compensation: full}", "compensation: {ranks: 3}}")),
             contains("FILE:5: plan.compensation.ranks: unknown key; did you mean 'rank'?"));
  CHECK(nearest("epoch", {"name", "train", "epochs"}) == "epochs");
  CHECK(nearest("lr", {"name", "learning_rate", "l"}) == "l");
}

TEST_CASE("a key that is given twice is refused", "[config]") {
  CHECK(error_of(with("parallel: {}", "model: {}")) == "FILE:18: model: this key is given twice; remove one of them");
  CHECK(error_of(with("dtype: float32", "path: other")) ==
        "FILE:4: model.path: this key is given twice; remove one of them");
}

TEST_CASE("files that are not a configuration", "[config]") {
  CHECK_THAT(error_of("run: {name: a\nmodel: [\n"), contains("FILE:") && contains("not valid YAML"));
  CHECK_THAT(error_of("run:\n  name: a\n dir: b\n"), contains("FILE:3: not valid YAML"));
  CHECK_THAT(error_of("run: {}\n---\nrun: {}\n"), contains("FILE: holds 2 YAML documents"));
  CHECK_THROWS_AS(load_config("no/such/file.yaml"), UsageError);
  CHECK_THROWS_WITH(load_config("no/such/file.yaml"), contains("no/such/file.yaml: no such file"));
  CHECK_THROWS_AS(load_config("/"), UsageError);
}

TEST_CASE("overrides are applied in order", "[config]") {
  const Config config =
      load_text(kYaml, {"optimizer.micro_batch=2", "stages.0.epochs=2.5", "plan={group: 3, begin: 0, end: 4}",
                        "plan.compensation=full", "parallel.timeout_seconds=5", "data.train.0.weight=2", "run.seed=1",
                        "run.seed=2", "model.path=a=b"});
  CHECK(config.optimizer.micro_batch == 2);
  CHECK(config.stages[0].epochs == 2.5);
  CHECK(config.plan->group == 3);
  CHECK(config.parallel.timeout_seconds == 5);
  CHECK(config.data.train[0].weight == 2);
  CHECK(config.run.seed == 2);
  CHECK(config.model.path == "a=b");
  CHECK_FALSE(load_text(kYaml, {"calibration=null"}).calibration);
}

TEST_CASE("errors of overrides name the override", "[config]") {
  CHECK(error_with({"data.max_length=long"}) ==
        "override 'data.max_length=long': data.max_length: expected an integer, found 'long'");
  CHECK_THAT(
      error_with({"optimizer.micro_bach=2"}),
      contains("override 'optimizer.micro_bach=2': optimizer.micro_bach: unknown key; did you mean 'micro_batch'?"));
  CHECK_THAT(error_with({"optimizer={micro_batch: 0}"}),
             contains("override 'optimizer={micro_batch: 0}': optimizer.micro_batch: must be at least 1, found 0"));
  CHECK_THAT(error_with({"stages.2.epochs=1"}), contains("'2' is not an item of this list of 2"));
  CHECK_THAT(error_with({"stages.last.epochs=1"}), contains("'last' is not an item"));
  CHECK_THAT(error_with({"run.name.first=1"}), contains("'first' is sought inside the value 'test'"));
  for (const char* bad : {"data.max_length", "=3", "data..pack=true", ".=1"}) {
    CHECK_THAT(error_with({bad}), contains("expected key.path=value"));
  }
  CHECK_THAT(error_with({"plan=[1"}), contains("override 'plan=[1': the value is not valid YAML"));
}

TEST_CASE("values out of range are refused at their line", "[config]") {
  CHECK(error_of(with("dtype: float32", "dtype: float16")) ==
        "FILE:4: model.dtype: expected one of float32, bfloat16, found 'float16'");
  CHECK(error_of(with("max_steps: 5", "epochs: 0")) ==
        "FILE:15: stages.1: expected either epochs or max_steps above 0, found 0 and 0");
  const std::vector<std::pair<std::string, std::string>> refused = {
      {"run.name=''", "run.name: is missing"},
      {"run.seed=-1", "at least 0"},
      {"model.path=''", "model.path: is missing"},
      {"plan.mode=full", "expected one of share_probs, share_kv, linear, skip, found 'full'"},
      {"plan.group=-1", "plan.group: must be at least 1"},
      {"plan.begin=-1", "plan.begin: must be at least 0"},
      {"plan.end=1", "plan.end: must be above plan.begin (1), found 1"},
      {"plan.compensation={rank: 0}", "plan.compensation.rank: must be at least 1"},
      {"plan.num_kv_heads=-1", "plan.num_kv_heads: must be at least 0"},
      {"plan.mask=follower", "plan.mask: expected one of own, leader, found 'follower'"},
      {"plan.file=x.yaml", "expected one of group (with begin and end), layers and file, found several"},
      {"plan={mode: share_probs}", "found none of them"},
      {"plan={layers: [{layer: 1, leader: 0}]}", "plan.layers.0.mode: is full (the default)"},
      {"plan={layers: [{layer: 1, leader: 0, mode: share}]}", "plan.layers.0.mode: expected one of"},
      {"plan={layers: [{layer: 1, num_kv_heads: -2}]}", "plan.layers.0.num_kv_heads: must be at least 0"},
      {"plan={layers: [{layer: 1, leader: 0, mode: share_kv, mask: all}]}", "plan.layers.0.mask: expected one of"},
      {"plan={file: x.yaml, compensation: none}", "plan.compensation: belongs to the short form"},
      {"plan={file: x.yaml, num_kv_heads: 2}", "plan.num_kv_heads: belongs to the short form"},
      {"plan={file: x.yaml, mask: leader}", "plan.mask: belongs to the short form"},
      {"calibration.data=[]", "calibration.data: is empty"},
      {"calibration.data.0.format=csv",
       "calibration.data.0.format: expected one of alpaca, messages, tulu_single_round, text, ids"},
      {"calibration.samples=-1", "calibration.samples: must be at least 0"},
      {"calibration.held_out=1", "calibration.held_out: must be at least 0 and below 1"},
      {"calibration.held_out=0", "hold some out, or give a ridge"},
      {"calibration.ridge=-0.1", "calibration.ridge: must be `auto` or at least 0"},
      {"calibration.fit=[]", "calibration.fit: is empty"},
      {"calibration.fit=[output, query]", "calibration.fit.1: expected one of"},
      {"calibration.fit=[output, output]", "calibration.fit.1: 'output' is listed twice"},
      {"data.train.0.path=''", "data.train.0.path: is missing"},
      {"data.train.0.weight=0", "data.train.0.weight: must be above 0"},
      {"data.max_length=1", "data.max_length: must be at least 2"},
      {"data.over_long=cut", "data.over_long: expected one of truncate, drop, split, error"},
      {"data.bad_records=skip", "data.bad_records: expected one of drop, error"},
      {"stages.0.name=''", "stages.0.name: is missing"},
      {"stages.0.train=head", "stages.0.train: expected compensation, all or a list of patterns"},
      {"stages.0.max_steps=3", "stages.0: expected either epochs or max_steps above 0, found 1 and 3"},
      {"stages.0.epochs=-1", "stages.0.epochs: must be at least 0"},
      {"stages.0.learning_rate=0", "stages.0.learning_rate: must be above 0"},
      {"optimizer.accumulation=0", "optimizer.accumulation: must be at least 1"},
      {"optimizer.schedule=cos", "optimizer.schedule: expected one of cosine, linear, constant"},
      {"optimizer.warmup_ratio=1", "optimizer.warmup_ratio: must be at least 0 and below 1"},
      {"optimizer.weight_decay=-1", "optimizer.weight_decay: must be at least 0"},
      {"optimizer.clip_norm=-1", "optimizer.clip_norm: must be at least 0"},
      {"optimizer.beta2=1", "optimizer.beta2: must be at least 0 and below 1"},
      {"optimizer.eps=0", "optimizer.eps: must be above 0"},
      {"checkpoint.every_steps=0", "checkpoint.every_steps: is 0, and so is every_minutes"},
      {"checkpoint.keep_last=0", "checkpoint.keep_last: must be at least 1"},
      {"parallel.timeout_seconds=0", "parallel.timeout_seconds: must be at least 1"},
      {"export.dtype=int8", "export.dtype: expected one of float32, bfloat16, float16"},
      {"export.max_shard_gb=0", "export.max_shard_gb: must be above 0"},
  };
  for (const auto& [override, message] : refused) {
    CHECK_THAT(error_with({override}), contains(message));
  }
}

TEST_CASE("sections must fit together", "[config]") {
  CHECK_THAT(error_with({"plan=null", "stages=null"}), contains("FILE:6: calibration: there is no plan to calibrate"));
  CHECK_THAT(error_with({"plan.compensation=none"}), contains("FILE:14: stages.0.train: trains the compensation"));
  CHECK_NOTHROW(load_text(kYaml, {"plan={}", "calibration=null"}));  // the model may be unified already
  CHECK_THAT(error_with({"plan={layers: [{layer: 1, mode: share_probs, leader: 0}]}"}), contains("stages.0.train"));
  CHECK_THAT(error_with({"data.train=[]"}), contains("data.train: is empty, and there are stages to train"));
  CHECK_THAT(error_with({"stages.1.name=compensation"}),
             contains("stages.1.name: 'compensation' is the name of an earlier"));
  CHECK_THAT(error_with({"plan.compensation=none", "stages.0.train=all", "calibration.fit=[compensation]"}),
             contains("calibration.fit: fits only the compensation, and the plan has none"));
  CHECK_NOTHROW(load_text(kYaml, {"plan.compensation=none", "stages.0.train=all"}));
  CHECK_NOTHROW(load_text(kYaml, {"plan={file: later.yaml}"}));
}

TEST_CASE("a plan section becomes a SharingPlan", "[config]") {
  const SharingPlan regular = build_plan({.group = 4, .begin = 16, .end = 33}, 32);
  CHECK(regular == SharingPlan::regular(32, Mode::share_probs, 4, 16, 33, {.kind = Compensation::Kind::full}));

  const SharingPlan reduced =
      build_plan({.mode = "share_kv", .group = 2, .begin = 1, .end = 9, .num_kv_heads = 2, .mask = "leader"}, 4);
  CHECK(reduced.layers[0] == LayerPlan{});
  CHECK(reduced.layers[1] == LayerPlan{.num_kv_heads = 2});
  CHECK(reduced.layers[2] == LayerPlan{.mode = Mode::share_kv,
                                       .leader = 1,
                                       .compensation = {.kind = Compensation::Kind::full},
                                       .leader_mask = true});
  CHECK(reduced.layers[3] == LayerPlan{.num_kv_heads = 2});

  const std::string layers =
      "layers:\n- {layer: 2, mode: share_probs, leader: 1, compensation: {rank: 3}, head_map: [1, 0], mask: leader}\n"
      "- {layer: 3, mode: skip}\n- {layer: 1, num_kv_heads: 2}\n";
  SharingPlan expected = SharingPlan::all_full(4);
  expected.layers[2] = {.mode = Mode::share_probs,
                        .leader = 1,
                        .compensation = {.kind = Compensation::Kind::low_rank, .rank = 3},
                        .head_map = {1, 0},
                        .leader_mask = true};
  expected.layers[1].num_kv_heads = 2;
  expected.layers[3].mode = Mode::skip;
  const TemporaryFile file(layers);
  const PlanConfig by_file{.file = file.path()};
  CHECK(build_plan(by_file, 4) == expected);
  CHECK_THROWS_WITH(build_plan(by_file, 3), contains(":3: layers.1.layer: is 3; the model's layers are 0 to 2"));
  CHECK_THROWS_AS(build_plan({.file = "no/such.yaml"}, 4), UsageError);

  PlanConfig by_list{.layers = {{.layer = 2, .mode = "share_probs", .leader = 1}, {.layer = 2, .mode = "skip"}}};
  CHECK_THROWS_WITH(build_plan(by_list, 4), contains("plan.layers.1.layer: layer 2 is listed twice"));
  by_list.layers[1].layer = 3;
  CHECK(build_plan(by_list, 4).followers() == std::vector<int64_t>{2, 3});
}
