#include "inference/sampler.h"

#include <algorithm>
#include <cmath>

#include "support/error.h"

namespace uniattn {
namespace {

int64_t most_probable(std::span<const float> logits) {
  size_t best = 0;
  bool has_nan = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    has_nan |= std::isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  if (has_nan || std::isinf(logits[best]))
    fail("the model's logits are not finite: its weights hold a NaN or an infinity, or overflow in this dtype");
  return static_cast<int64_t>(best);
}

}  // namespace

void SamplingOptions::validate() const {
  if (!(temperature >= 0) || std::isinf(temperature)) fail_usage("temperature is {}, expected 0 or more", temperature);
  if (top_k < 0) fail_usage("top_k is {}, expected 0 (off) or more", top_k);
  if (!(top_p > 0 && top_p <= 1)) fail_usage("top_p is {}, expected a share in (0, 1]", top_p);
}

int64_t Sampler::choose(std::span<const float> logits) {
  const int64_t best = most_probable(logits);
  if (options_.temperature == 0) return best;
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
  // Of equal logits the lower id comes first, as in a stable sort.
  const auto before = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates_.size()) {
    const auto end = candidates_.begin() + options_.top_k;
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(), before);
    candidates_.erase(end, candidates_.end());
  }
  if (options_.top_p < 1) std::sort(candidates_.begin(), candidates_.end(), before);
  const auto weight = [&](const auto& candidate) {
    return std::exp((static_cast<double>(candidate.first) - logits[static_cast<size_t>(best)]) / options_.temperature);
  };
  double total = 0;
  for (const auto& candidate : candidates_) total += weight(candidate);
  // Tokens are drawn from the share top_p of the sum; the one that reaches it still counts whole.
  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total))
    kept += weight(candidates_[count++]);
  double draw = static_cast<double>(random_() >> 11) * 0x1.0p-53 * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    draw -= weight(candidates_[i]);
    if (draw < 0) return candidates_[i].second;
  }
  return candidates_[count - 1].second;
}

}  // namespace uniattn
