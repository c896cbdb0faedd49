// The next token, from logits.
#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace uniattn {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy, and nothing below matters
  int64_t top_k = 0;       // only the k most probable tokens; 0: all
  double top_p = 1;        // then only the most probable ones that make up this share
  uint64_t seed = 0;

  // Throws UsageError naming the option that is out of range.
  void validate() const;
};

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}

  // Throws Error when the logits hold a NaN or are all -infinity. The same seed and logits give the same tokens.
  int64_t choose(std::span<const float> logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<std::pair<float, int32_t>> candidates_;  // kept between calls for their memory
};

}  // namespace uniattn
