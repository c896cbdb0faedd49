#include "config/difference.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>

namespace uniattn {
namespace {

using Flat = std::map<std::string, std::string>;  // values by dotted key

bool has_sections(const YAML::Node& list) {
  return std::any_of(list.begin(), list.end(), [](const YAML::Node& item) { return item.IsMap(); });
}

void flatten(const YAML::Node& node, const std::string& key, Flat& flat) {
  const std::string prefix = key.empty() ? "" : key + ".";
  if (node.IsMap()) {
    for (const auto& entry : node) flatten(entry.second, prefix + entry.first.Scalar(), flat);
  } else if (node.IsSequence() && has_sections(node)) {
    for (size_t i = 0; i < node.size(); ++i) flatten(node[i], prefix + std::to_string(i), flat);
  } else {
    flat[key] = YAML::Dump(node);
  }
}

Flat flatten(const Config& config) {
  Flat flat;
  flatten(YAML::Load(to_yaml(config)), "", flat);
  return flat;
}

// The rows of a step may be split anew, as long as they stay as many: the trainer looks at that.
ChangedKey::Effect effect_of(const std::string& key) {
  for (const char* free : {"run.name", "run.dir", "run.peak_tflops", "optimizer.micro_batch", "optimizer.accumulation",
                           "optimizer.activation_checkpointing", "data.eval", "checkpoint.", "evaluation.", "samples.",
                           "parallel.", "export.", "search."})
    if (key.starts_with(free)) return ChangedKey::Effect::none;
  for (const char* section : {"model.", "plan.", "calibration."})
    if (key.starts_with(section)) return ChangedKey::Effect::start;
  return ChangedKey::Effect::training;
}

}  // namespace

std::vector<ChangedKey> changed_keys(const Config& before, const Config& after) {
  Flat old_keys = flatten(before), new_keys = flatten(after);
  Flat all = old_keys;
  all.insert(new_keys.begin(), new_keys.end());
  const auto value = [](const Flat& flat, const std::string& key) {
    const auto found = flat.find(key);
    return found == flat.end() ? kNoValue : found->second;
  };
  std::vector<ChangedKey> changed;
  for (const auto& [key, unused] : all)
    if (value(old_keys, key) != value(new_keys, key))
      changed.push_back({key, value(old_keys, key), value(new_keys, key), effect_of(key)});
  return changed;
}

}  // namespace uniattn
