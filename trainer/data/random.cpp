#include "data/random.h"

namespace uniattn {

Random::Random(std::initializer_list<int64_t> seeds) {
  std::vector<uint32_t> words;
  for (const int64_t seed : seeds) {
    words.push_back(static_cast<uint32_t>(seed));
    words.push_back(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
  }
  std::seed_seq sequence(words.begin(), words.end());
  engine_.seed(sequence);
}

uint64_t Random::below(uint64_t bound) {
  // Draws from the incomplete last stretch of `bound` values would favour small ones.
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
  uint64_t draw = engine_();
  while (draw >= limit) draw = engine_();
  return draw % bound;
}

}  // namespace uniattn
