#include <ATen/ATen.h>

#include <limits>

#include "catch.h"
#include "train/stochastic_rounding.h"

using uniattn::round_stochastically;

TEST_CASE("stochastic rounding gives one of the two neighbours, and the value on average", "[stochastic_rounding]") {
  const int64_t n = 1 << 16;
  for (const float value : {1.0F + 1.0F / 512, -3.1F, 1e-30F}) {
    const at::Tensor values = at::full({n}, value);
    const at::Tensor rounded = round_stochastically(values, 7, 0).to(at::kFloat);
    const auto [low, high] = at::aminmax(rounded);
    CHECK(low.item<float>() <= value);
    CHECK(high.item<float>() >= value);
    const double step = (high - low).item<double>();
    CHECK(step / std::abs(value) <= 1.0 / 128);
    // The mean of n draws is within five standard deviations of at most step / 2 each.
    CHECK(std::abs(rounded.mean(at::kDouble).item<double>() - value) <= 5 * step / 2 / std::sqrt(double(n)));
  }
}

TEST_CASE("what bfloat16 holds is kept, infinities and NaN included", "[stochastic_rounding]") {
  const at::Tensor exact = at::randn({1000}).to(at::kBFloat16);
  CHECK(at::equal(round_stochastically(exact.to(at::kFloat), 1, 0), exact));
  const float infinity = std::numeric_limits<float>::infinity();
  const at::Tensor odd = round_stochastically(at::tensor({infinity, -infinity, std::nanf("")}), 1, 0);
  CHECK(odd[0].item<float>() == infinity);
  CHECK(odd[1].item<float>() == -infinity);
  CHECK(std::isnan(odd[2].item<float>()));
}

TEST_CASE("chance depends on the stream and the element alone", "[stochastic_rounding]") {
  const at::Tensor values = at::randn({1000});
  const at::Tensor whole = round_stochastically(values, 3, 50);
  const at::Tensor parts = at::cat({round_stochastically(values.slice(0, 0, 333), 3, 50),
                                    round_stochastically(values.slice(0, 333, 1000), 3, 383)});
  CHECK(at::equal(whole, parts));
  CHECK_FALSE(at::equal(whole, round_stochastically(values, 4, 50)));
  CHECK_FALSE(at::equal(whole, round_stochastically(values, 3, 51)));
}
