// The configurations in configs/: they load, say how they are launched, and hold the published settings.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "catch.h"
#include "config/config.h"
#include "config/plan_config.h"

using namespace uniattn;

namespace {

const std::filesystem::path kConfigs = std::filesystem::path(UNIATTN_SOURCE_DIR) / "configs";

struct Published {
  std::string model;
  double learning_rate;
  PlanLimits limits;
  std::vector<int64_t> leaders;
  size_t followers;
};

PlanLimits limits(int64_t num_layers, int64_t num_heads, int64_t num_kv_heads, int64_t hidden_size) {
  return {num_layers, num_heads, num_kv_heads, hidden_size, std::vector<int64_t>(static_cast<size_t>(num_layers), 0)};
}

PlanLimits gemma_limits() {
  PlanLimits gemma = limits(42, 16, 8, 3584);
  for (size_t i = 0; i < gemma.windows.size(); i += 2) gemma.windows[i] = 4096;
  return gemma;
}

std::vector<Published> published() {
  PlanLimits mistral = limits(32, 32, 8, 4096);
  mistral.windows.assign(32, 4096);
  return {{"llama-3.1-8b", 7e-6, limits(32, 32, 8, 4096), {16, 20, 24, 28}, 12},
          {"llama-2-7b", 2e-5, limits(32, 32, 32, 4096), {16, 20, 24, 28}, 12},
          {"mistral-7b-v0.1", 1e-6, mistral, {16, 20, 24, 28}, 12},
          {"gemma-2-9b", 1e-6, gemma_limits(), {21, 22, 29, 30, 37, 38}, 15}};
}

}  // namespace

TEST_CASE("every shipped configuration loads and opens with its launch command", "[config]") {
  size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kConfigs)) {
    if (entry.is_directory()) continue;
    INFO(entry.path());
    CHECK_NOTHROW(load_config(entry.path()));
    std::string first_line;
    std::getline(std::ifstream(entry.path()), first_line);
    CHECK(first_line.starts_with("# "));
    CHECK(first_line.ends_with("uniattn run configs/" + entry.path().lexically_relative(kConfigs).string()));
    ++count;
  }
  CHECK(count >= 2 * published().size());
}

TEST_CASE("the configurations of the published models", "[config]") {
  for (const Published& expected : published()) {
    for (const char* data : {"pmc", "tulu3"}) {
      const std::string name = expected.model + "-" + data;
      INFO(name);
      const Config config = load_config(kConfigs / (name + ".yaml"));
      CHECK(config.run.dir == "runs/" + name);
      CHECK(config.optimizer.micro_batch * config.optimizer.accumulation * 8 == 48);
      REQUIRE(config.stages.size() == 2);
      for (const StageConfig& stage : config.stages) {
        CHECK(stage.epochs == 1);
        CHECK(stage.learning_rate == expected.learning_rate);
      }
      const SharingPlan plan = build_plan(*config.plan, expected.limits.num_layers);
      CHECK_NOTHROW(plan.validate(expected.limits));
      CHECK(plan.followers().size() == expected.followers);
      for (int64_t i = 0; i < expected.limits.num_layers; ++i) {
        CHECK(plan.leads(i) == (std::ranges::count(expected.leaders, i) == 1));
      }
    }
  }
}
