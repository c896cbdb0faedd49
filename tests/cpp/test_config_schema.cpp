// What every key of the schema must survive: writing and reading back, and being documented.
#include <cmath>
#include <fstream>
#include <random>
#include <regex>
#include <set>

#include "catch.h"
#include "config/config.h"
#include "data/templates.h"
#include "support/error.h"
#include "temporary_yaml.h"

using namespace uniattn;

namespace {

// Random configurations that are valid.
struct Generator {
  std::mt19937 random;

  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }
  bool coin() { return integer(0, 1) == 1; }
  // Positive, over many orders of magnitude, with all its digits.
  double number() { return std::exp(std::uniform_real_distribution<double>(-30, 10)(random)); }
  double share() { return std::uniform_real_distribution<double>(1e-3, 0.999)(random); }
  std::string text() {
    const std::vector<std::string> pieces = {"a",  " ", ": ", "#", "- ", "'", "\"", "\\", "\n", "~",    "null", "true",
                                             "1.", "é", "雪", "{", "]",  "&", "*",  "!",  "%",  "auto", ",",    "\t"};
    std::string made;
    for (int64_t i = integer(1, 5); i > 0; --i) made += choose(pieces);
    return made;
  }
  template <class T>
  T choose(const std::vector<T>& from) {
    return from[static_cast<size_t>(integer(0, static_cast<int64_t>(from.size()) - 1))];
  }
  CompensationConfig compensation() {
    if (coin()) return {.kind = "low_rank", .rank = integer(1, 1 << 20)};
    return {.kind = choose<std::string>({"none", "full"}), .rank = 0};
  }
  std::vector<DataSource> sources() {
    std::vector<DataSource> made(static_cast<size_t>(integer(1, 3)));
    for (DataSource& source : made) {
      source = {.path = text(),
                .format = choose<std::string>({"alpaca", "messages", "tulu_single_round"}),
                .template_name = coin() ? choose(template_names()) : "",
                .weight = number()};
    }
    return made;
  }
  PlanConfig plan() {
    PlanConfig made;
    switch (integer(0, 2)) {
      case 0:
        made.file = text();
        break;
      case 1:
        for (int64_t i = integer(1, 4); i > 0; --i) {
          made.layers.push_back({.layer = integer(0, 99),
                                 .mode = choose<std::string>({"share_probs", "share_kv", "linear", "skip"}),
                                 .leader = integer(-1, 99),
                                 .compensation = compensation(),
                                 .head_map = std::vector<int64_t>(static_cast<size_t>(integer(0, 4)), integer(0, 9)),
                                 .num_kv_heads = integer(0, 8),
                                 .mask = choose<std::string>({"own", "leader"})});
        }
        break;
      default:
        made.group = integer(1, 9);
        made.begin = integer(0, 99);
        made.end = made.begin + integer(1, 99);
        made.compensation = compensation();
        made.num_kv_heads = integer(0, 8);
        made.mask = choose<std::string>({"own", "leader"});
    }
    return made;
  }
  Config config() {
    Config made;
    made.run = {.name = text(), .dir = text(), .seed = integer(0, INT64_MAX)};
    made.model = {.path = text(), .dtype = choose<std::string>({"float32", "bfloat16"})};
    if (coin()) made.plan = plan();
    if (made.plan && coin()) {
      made.calibration.emplace();
      made.calibration->data = sources();
      made.calibration->held_out = share();
      if (coin()) made.calibration->ridge = number();
      made.calibration->fit = choose<std::vector<std::string>>({{"output"}, {"compensation", "output"}});
    }
    if (made.calibration && coin()) {
      made.search.emplace();
      made.search->budget = coin() ? SearchBudget{.followers = integer(1, 99)} : SearchBudget{.kv_bytes = share()};
      made.search->modes = choose<std::vector<std::string>>({{"skip"}, {"share_kv", "share_probs"}});
      made.search->max_group = integer(2, 99);
      made.search->compensation = compensation();
    }
    made.data = {.train = sources(), .max_length = integer(2, 1 << 20), .pack = coin(), .over_long = "split"};
    for (int64_t i = integer(0, 3); i > 0; --i) {
      StageConfig stage{.name = text() + std::to_string(i), .learning_rate = number()};
      if (coin()) stage.train = {.kind = "patterns", .patterns = {text() + "*", "model.norm.weight"}};
      if (coin()) stage.distill = DistillConfig{.target = "logits", .weight = 0.5, .temperature = number()};
      (coin() ? stage.epochs = number() : static_cast<double>(stage.max_steps = integer(1, 99)));
      made.stages.push_back(stage);
    }
    made.optimizer = {.micro_batch = integer(1, 9), .warmup_ratio = share(), .beta2 = share(), .eps = number()};
    made.checkpoint = {.every_steps = integer(1, 999), .keep_last = integer(1, 9)};
    made.exporting.max_shard_gb = number();
    return made;
  }
};

}  // namespace

TEST_CASE("a written configuration reads back the same", "[config]") {
  const uint32_t seed = GENERATE(range(0u, 200u));
  const Config config = Generator{std::mt19937(seed)}.config();
  const std::string yaml = to_yaml(config);
  INFO(yaml);
  CHECK(load_text(yaml) == config);
}

TEST_CASE("damaged YAML ends in a UsageError or in a valid configuration", "[config]") {
  const uint32_t seed = GENERATE(range(0u, 500u));
  Generator generate{std::mt19937(seed)};
  std::string yaml = to_yaml(generate.config());
  for (int64_t edits = generate.integer(1, 4); edits > 0; --edits) {
    const auto at = static_cast<size_t>(generate.integer(0, static_cast<int64_t>(yaml.size()) - 1));
    yaml.replace(at, static_cast<size_t>(generate.integer(0, 3)), generate.coin() ? generate.text() : "\x01");
  }
  INFO(yaml);
  try {
    load_text(yaml).validate();
  } catch (const UsageError& error) {
    CHECK_THAT(error.what(), contains(".yaml:"));
  }
}

TEST_CASE("a written configuration has every key", "[config]") {
  Config config;
  config.plan.emplace().layers.resize(1);
  config.calibration.emplace().data.resize(1);
  config.search.emplace();
  config.data.train.resize(1);
  config.stages.resize(1);
  config.stages[0].distill.emplace();
  const std::string yaml = to_yaml(config);
  for (const std::string& key : config_keys()) CHECK_THAT(yaml, contains(key.substr(key.rfind('.') + 1) + ": "));
  CHECK_THAT(yaml, contains("ridge: auto"));
}

TEST_CASE("keys are named with their path", "[config]") {
  const std::vector<std::string> list = config_keys();
  const std::set<std::string> keys(list.begin(), list.end());
  CHECK(keys.size() == list.size());
  for (const char* key :
       {"run.name", "plan.layers[].head_map", "calibration.ridge", "calibration.data[].path", "stages[].epochs",
        "plan.compensation", "calibration.fit", "search.budget.kv_bytes", "export.max_shard_gb"}) {
    CHECK(keys.contains(key));
  }
}

TEST_CASE("docs/configuration.md explains exactly the keys there are", "[config]") {
  std::ifstream page(UNIATTN_SOURCE_DIR "/docs/configuration.md");
  REQUIRE(page);
  const std::regex row("^\\| `([a-z0-9_.\\[\\]]+)` \\|.*");
  std::set<std::string> documented;
  std::smatch match;
  for (std::string line; std::getline(page, line);) {
    if (std::regex_match(line, match, row)) {
      INFO(line);
      CHECK(documented.insert(match[1]).second);
    }
  }
  const std::vector<std::string> keys = config_keys();
  CHECK(documented == std::set<std::string>(keys.begin(), keys.end()));
}
