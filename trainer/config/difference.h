// How two configurations of the same run differ.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"

namespace uniattn {

inline constexpr const char* kNoValue = "nothing";  // stands for the value of a key that is not there

struct ChangedKey {
  enum class Effect {
    none,      // of how the run is carried out, saved or watched: the weights stay what they would have been
    training,  // of data or training: another run, unless its owner says that it is to go on
    start,     // of model, plan or calibration: what the run starts from was made without it
  };
  std::string key;            // dotted, items of sections' lists by number
  std::string before, after;  // YAML, or kNoValue
  Effect effect;
};

// In the order of the keys' names.
std::vector<ChangedKey> changed_keys(const Config& before, const Config& after);

}  // namespace uniattn
