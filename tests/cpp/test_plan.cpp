// SharingPlan: the short form, who follows whom, and what is refused.
#include "catch.h"
#include "plan/plan.h"
#include "support/error.h"

using namespace uniattn;

namespace {

const Compensation kFull{.kind = Compensation::Kind::full};

Compensation rank(int64_t r) {
  return {.kind = Compensation::Kind::low_rank, .rank = r};
}

PlanLimits limits(int64_t num_layers) {
  return {.num_layers = num_layers,
          .num_heads = 4,
          .num_kv_heads = 4,
          .hidden_size = 16,
          .windows = std::vector<int64_t>(num_layers, 0)};
}

// Four layers, the last two following layer 1.
SharingPlan small_plan() {
  SharingPlan plan = SharingPlan::all_full(4);
  for (int i : {2, 3}) plan.layers[i] = {.mode = Mode::share_probs, .leader = 1, .compensation = kFull};
  return plan;
}

void check_refused(const SharingPlan& plan, const PlanLimits& bounds, const std::string& part) {
  CHECK_THROWS_AS(plan.validate(bounds), UsageError);
  CHECK_THROWS_WITH(plan.validate(bounds), contains(part));
}

}  // namespace

TEST_CASE("mode names go both ways", "[plan]") {
  for (Mode mode : {Mode::full, Mode::share_probs, Mode::share_kv, Mode::linear, Mode::skip}) {
    CHECK(parse_mode(to_string(mode)) == mode);
  }
  CHECK(to_string(Mode::share_probs) == "share_probs");
  CHECK_THROWS_AS(parse_mode("shared"), UsageError);
  CHECK_THROWS_WITH(parse_mode("shared"), contains("'shared'") && contains("share_probs"));
}

TEST_CASE("the published plan of Llama-3.1-8B", "[plan]") {
  const SharingPlan plan = SharingPlan::regular(32, Mode::share_probs, 4, 16, 33, kFull);
  CHECK(plan.shares());
  CHECK(plan.followers() == std::vector<int64_t>{17, 18, 19, 21, 22, 23, 25, 26, 27, 29, 30, 31});
  for (int64_t i = 0; i < 32; ++i) {
    CHECK(plan.leads(i) == (i == 16 || i == 20 || i == 24 || i == 28));
  }
  CHECK(plan.followers_of(20) == std::vector<int64_t>{21, 22, 23});
  CHECK(plan.last_follower_of(28) == 31);
  CHECK(plan.last_follower_of(17) == -1);
  CHECK(plan.layers[17] == LayerPlan{.mode = Mode::share_probs, .leader = 16, .compensation = kFull});
  CHECK_NOTHROW(plan.validate(limits(32)));
}

TEST_CASE("the last superblock may be shorter", "[plan]") {
  const SharingPlan plan = SharingPlan::regular(8, Mode::share_probs, 3, 2, 7, {});
  CHECK(plan.followers() == std::vector<int64_t>{3, 4, 6});
  CHECK(plan.layers[6].leader == 5);
  CHECK(plan.layers[7] == LayerPlan{});
  CHECK_FALSE(SharingPlan::regular(8, Mode::share_probs, 1, 2, 7, kFull).shares());
  CHECK_FALSE(SharingPlan::all_full(8).shares());
}

TEST_CASE("the short form of layers without a leader", "[plan]") {
  const SharingPlan plan = SharingPlan::regular(4, Mode::skip, 2, 0, 4, {});
  CHECK(plan.followers() == std::vector<int64_t>{1, 3});
  CHECK(plan.layers[1].leader == -1);
  CHECK_FALSE(plan.leads(0));
  CHECK_NOTHROW(plan.validate(limits(4)));
}

TEST_CASE("a short form out of range is refused", "[plan]") {
  const auto make = [](int64_t group, int64_t begin, int64_t end) {
    return SharingPlan::regular(8, Mode::share_probs, group, begin, end, kFull);
  };
  CHECK_THROWS_AS(make(0, 2, 6), UsageError);
  CHECK_THROWS_WITH(make(0, 2, 6), contains("group is 0"));
  CHECK_THROWS_WITH(make(2, -1, 6), contains("begin is -1"));
  CHECK_THROWS_WITH(make(2, 8, 12), contains("begin is 8") && contains("0 to 7"));
  CHECK_THROWS_WITH(make(2, 4, 4), contains("end is 4"));
  CHECK_NOTHROW(make(2, 4, 1000));
}

TEST_CASE("a plan that does not fit the model is refused with its layer", "[plan]") {
  SharingPlan plan = small_plan();
  REQUIRE_NOTHROW(plan.validate(limits(4)));
  LayerPlan& layer = plan.layers[3];
  PlanLimits bounds = limits(4);

  SECTION("number of layers") {
    check_refused(plan, limits(5), "4 layers, the model has 5");
  }
  SECTION("leader behind") {
    layer.leader = 3;
    check_refused(plan, bounds, "the leader of layer 3 is 3");
  }
  SECTION("no leader") {
    layer.leader = -1;
    check_refused(plan, bounds, "the leader of layer 3 is -1");
  }
  SECTION("leader that follows") {
    layer.leader = 2;
    check_refused(plan, bounds, "layer 3 follows layer 2, which has mode share_probs");
  }
  SECTION("leader of a full layer") {
    layer = {.mode = Mode::full, .leader = 1};
    check_refused(plan, bounds, "layer 3 has mode full and a leader");
  }
  SECTION("mixed masks") {
    bounds.windows = {0, 4096, 4096, 0};
    check_refused(plan, bounds, "layer 3 is global, that of its leader 1 is sliding over 4096 tokens");
    layer.leader_mask = true;
    CHECK_NOTHROW(plan.validate(bounds));
  }
  SECTION("leader's mask without a leader") {
    layer = {.leader_mask = true};
    check_refused(plan, bounds, "layer 3 has mode full and `mask: leader`");
  }
  SECTION("key/value heads of a follower") {
    layer.num_kv_heads = 2;
    check_refused(plan, bounds, "layer 3 has mode share_probs and num_kv_heads 2");
  }
  SECTION("key/value heads that do not divide the model's") {
    for (const int64_t heads : {-1, 3, 4, 8}) {
      layer = {.num_kv_heads = heads};
      check_refused(plan, bounds, "layer 3 has num_kv_heads " + std::to_string(heads));
    }
  }
  SECTION("head map length") {
    layer.head_map = {0, 1, 2};
    check_refused(plan, bounds, "layer 3 has 3 entries");
  }
  SECTION("head map range") {
    layer.head_map = {0, 1, 2, 4};
    check_refused(plan, bounds, "layer 3 sends head 3 to 4");
  }
  SECTION("head map of another mode") {
    layer = {.mode = Mode::share_kv, .leader = 1, .head_map = {0, 1, 2, 3}};
    check_refused(plan, bounds, "layer 3 has mode share_kv and a head map");
  }
  SECTION("rank too high") {
    layer.compensation = rank(16);
    check_refused(plan, bounds, "layer 3 has rank 16");
  }
  SECTION("rank too low") {
    layer.compensation = rank(0);
    check_refused(plan, bounds, "layer 3 has rank 0");
  }
  SECTION("compensation of a full layer") {
    plan.layers[0].compensation = kFull;
    check_refused(plan, bounds, "layer 0 has mode full and a compensation");
  }
  SECTION("linear without compensation") {
    layer = {.mode = Mode::linear};
    check_refused(plan, bounds, "layer 3 has mode linear and no compensation");
  }
}

TEST_CASE("a head map need not be a permutation", "[plan]") {
  SharingPlan plan = small_plan();
  plan.layers[2].head_map = {3, 3, 0, 1};
  plan.layers[3].compensation = rank(15);
  CHECK_NOTHROW(plan.validate(limits(4)));
}

TEST_CASE("fewer key/value heads alone make a plan", "[plan]") {
  SharingPlan plan = SharingPlan::all_full(4);
  plan.layers[1].num_kv_heads = 2;
  CHECK(plan.shares());
  CHECK(plan.followers().empty());
  CHECK_NOTHROW(plan.validate(limits(4)));
}

TEST_CASE("followers attend under their leader's mask", "[plan]") {
  SharingPlan plan = small_plan();
  plan.layers[3] = {.mode = Mode::linear, .compensation = kFull};
  CHECK(plan.mask_layer(1) == 1);
  CHECK(plan.mask_layer(2) == 1);
  CHECK(plan.mask_layer(3) == 3);
}
