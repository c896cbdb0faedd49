#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "calibration/branch_fit.h"
#include "calibration/head_map.h"
#include "calibration/value_fit.h"
#include "catch.h"
#include "support/error.h"

using namespace uniattn;

namespace {

// Random rows of a follower: 4 query heads in 2 KV groups of size 6 over 24 inputs, sequences of 20 tokens, and targets
// that the branch `truth` gives, with noise.
class Rows {
 public:
  explicit Rows(const Branch& truth, double noise = 0, bool scaled = false) {
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 8; ++i) {
      const at::Tensor cu_seqlens = at::arange(0, 101, 20, at::kInt);
      AttentionResult leader =
          attention(3 * at::randn({100, 4, 6}), at::randn({100, 2, 6}), at::randn({100, 2, 6}), cu_seqlens, 1);
      probs_.push_back(leader.probs.front());
      FitRows rows;
      rows.held_out = i >= 6;
      rows.x = at::randn({100, 24});
      if (scaled) rows.scale = at::rand({100, 1}) + 0.5;
      rows_.push_back(rows);
    }
    for (size_t i = 0; i < rows_.size(); ++i) {
      rows_[i].probs = &probs_[i];
      rows_[i].target = at::zeros({100, 24});
      rows_[i].target = branch_output(rows_[i], truth) + noise * at::randn({100, 24});
    }
  }

  RowStream stream() const {
    return [this](const RowFilter& filter, const std::function<void(const FitRows&)>& visit) {
      for (const FitRows& rows : rows_)
        if (rows.held_out ? filter.held_out : filter.fitted) visit(rows);
    };
  }

  double held_out_error(const Branch& branch) const {
    double sum = 0;
    for (const FitRows& rows : rows_)
      if (rows.held_out) sum += (rows.target - branch_output(rows, branch)).square().sum().item<double>();
    return sum;
  }

  std::vector<FitRows> rows_;

 private:
  std::vector<Probs> probs_;
};

Branch random_branch() {
  return {.v = at::randn({12, 24}) / 5, .o = at::randn({24, 24}) / 5, .compensation = {}, .head_map = {}};
}

ModelConfig config() {
  ModelConfig config;
  config.hidden_size = 24, config.num_heads = 4, config.num_kv_heads = 2, config.head_dim = 6;
  return config;
}

ProcessGroup& group() {
  static ProcessGroup alone(std::chrono::seconds(60));
  return alone;
}

}  // namespace

TEST_CASE("the value fit finds the values that made the target", "[calibration]") {
  for (const bool compensation : {false, true}) {
    Branch truth = random_branch();
    if (compensation) truth.compensation = at::randn({24, 24}) / 5;
    const Rows rows(truth, 0, /*scaled=*/true);
    Branch branch = truth;
    branch.v = at::randn({12, 24}) / 5;
    branch.compensation = at::Tensor();
    const double before = rows.held_out_error(branch);
    const RowStream stream = rows.stream();
    ValueFit values(config().head_dim, stream, group());
    for (int i = 0; i < 12; ++i) branch.v = values.fit(branch, compensation);
    if (compensation) branch.compensation = truth.compensation;
    CHECK(rows.held_out_error(branch) < 1e-3 * before);
  }
}

TEST_CASE("the search finds the head map that made the target", "[calibration]") {
  Branch truth = random_branch();
  truth.head_map = {2, 0, 1, 3};
  const Rows rows(truth, 0.1);
  Branch branch = truth;
  branch.head_map = {};
  const RowStream stream = rows.stream();
  CHECK(search_head_map(config(), branch, {.output = false, .compensation = false}, stream, group()) == truth.head_map);
  // With W_o refitted, the order inside a KV group is free.
  HeadMap map = search_head_map(config(), branch, {}, stream, group());
  REQUIRE(map.size() == 4);
  std::sort(map.begin(), map.begin() + 2);
  std::sort(map.begin() + 2, map.end());
  CHECK(map == HeadMap{0, 2, 1, 3});
}

TEST_CASE("what is fitted is never worse on held-out rows than what was there", "[calibration]") {
  for (int mask = 1; mask < 16; ++mask) {
    const FitTargets fit{.head_map = (mask & 1) != 0,
                         .value = (mask & 2) != 0,
                         .output = (mask & 4) != 0,
                         .compensation = (mask & 8) != 0};
    for (const Compensation form :
         {Compensation{Compensation::Kind::full, 0}, Compensation{Compensation::Kind::low_rank, 3}}) {
      INFO("fit " << mask << ", rank " << form.rank);
      Branch truth = random_branch();
      truth.head_map = {1, 3, 0, 0};
      truth.compensation = at::randn({24, 24}) / 10;
      const Rows rows(truth, 0.2);
      const Branch start = random_branch();
      const RowStream stream = rows.stream();
      const BranchFit found = fit_branch({config(), start, fit, form, std::nullopt, stream, at::kCPU}, group());
      CHECK(rows.held_out_error(found.branch) <= rows.held_out_error(start) * (1 + 1e-5));
      CHECK(found.branch.v.equal(start.v) == !(fit.value && found.sweeps > 0));
      if (!fit.output) CHECK(found.branch.o.equal(start.o));
      if (!fit.head_map) CHECK(found.branch.head_map.empty());
      if (!fit.compensation) CHECK(!found.branch.compensation.defined());
      if (fit.compensation && form.rank > 0) {
        REQUIRE(found.factors.up.defined());
        CHECK(found.factors.up.size(1) == 3);
        CHECK(at::allclose(at::mm(found.factors.up, found.factors.down).to(at::kFloat), found.branch.compensation));
      }
    }
  }
}

TEST_CASE("a target that is met already stays met", "[calibration]") {
  const Branch truth = random_branch();
  const Rows rows(truth);
  const RowStream stream = rows.stream();
  const BranchFit found =
      fit_branch({config(), truth, {}, {Compensation::Kind::full, 0}, std::nullopt, stream, at::kCPU}, group());
  CHECK(rows.held_out_error(found.branch) < 1e-8);
  CHECK(at::isfinite(found.branch.v).all().item<bool>());
  CHECK(at::isfinite(found.branch.o).all().item<bool>());
}

TEST_CASE("activations that are not finite are refused", "[calibration]") {
  Rows rows(random_branch());
  rows.rows_[2].x = rows.rows_[2].x.clone().fill_(std::numeric_limits<float>::quiet_NaN());
  const RowStream stream = rows.stream();
  CHECK_THROWS_AS(
      fit_branch({config(), random_branch(), {}, {Compensation::Kind::full, 0}, std::nullopt, stream, at::kCPU},
                 group()),
      Error);
}
