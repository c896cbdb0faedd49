// Random choices that are the same on every system: the standard specifies its engines, but not its distributions or
// std::shuffle.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <random>
#include <utility>
#include <vector>

namespace uniattn {

class Random {
 public:
  // The seeds together name the sequence, e.g. {run seed, epoch}.
  explicit Random(std::initializer_list<int64_t> seeds);

  // Uniform in [0, bound).
  uint64_t below(uint64_t bound);

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace uniattn
