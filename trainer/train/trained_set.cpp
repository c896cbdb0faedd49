#include "train/trained_set.h"

#include <fnmatch.h>

#include <algorithm>

#include "model/layer.h"
#include "support/error.h"

namespace uniattn {
namespace {

bool fits(const std::string& pattern, const std::string& name) {
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

}  // namespace

bool is_trained(const TrainedSet& set, const std::string& name) {
  if (set.kind == "all") return true;
  if (set.kind == "compensation") return is_compensation(name);
  return std::ranges::any_of(set.patterns, [&](const std::string& pattern) { return fits(pattern, name); });
}

void check_trained_set(const TrainedSet& set, const std::vector<std::string>& names) {
  for (const std::string& pattern : set.patterns)
    if (std::ranges::none_of(names, [&](const std::string& name) { return fits(pattern, name); }))
      fail_usage("a stage trains `{}`, and no tensor of the model has such a name; names look like `{}`", pattern,
                 names[names.size() / 2]);
  if (std::ranges::none_of(names, [&](const std::string& name) { return is_trained(set, name); }))
    fail_usage(
        "a stage trains `{}`, but the model has no such parameters; give the plan a compensation or drop the stage",
        set.kind);
}

}  // namespace uniattn
