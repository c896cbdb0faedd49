// From a YAML tree to the structs of config.h. Types are strict, unknown and repeated keys are refused, and absent keys
// keep the struct's default.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "config/fields.h"
#include "config/yaml_document.h"

namespace uniattn {

// One value of a document with what an error needs to name it.
struct YamlValue {
  const YamlDocument& document;
  YAML::Node node;
  std::string key;  // dotted, list items by number; empty at the root
  YAML::Mark mark;

  // Throws UsageError: expected `expected`, found what is there.
  [[noreturn]] void refuse(const std::string& expected) const;
};

// All of them throw UsageError (YamlDocument::fail_at) when the value is of another type.
void read(const YamlValue& value, std::string& field);
void read(const YamlValue& value, int64_t& field);
void read(const YamlValue& value, double& field);
void read(const YamlValue& value, bool& field);
void read(const YamlValue& value, std::optional<double>& field);  // a number, or `auto` for none
void read(const YamlValue& value, CompensationConfig& field);     // none | full | {rank: r}
void read(const YamlValue& value, TrainedSet& field);             // compensation | all | [pattern, ...]

// The entries of a mapping, in file order; none for null. Refuses everything else, keys that are not in `known`, and
// repeated ones.
std::vector<YamlValue> entries(const YamlValue& mapping, const std::vector<std::string>& known);
// The items of a list; none for null. Refuses everything else.
std::vector<YamlValue> items(const YamlValue& list);

template <Section S>
void read(const YamlValue& value, S& section) {
  for (const YamlValue& entry : entries(value, field_names<S>())) {
    const auto read_if_named = [&](const std::string& name, auto& field) {
      if (entry.key == (value.key.empty() ? name : value.key + "." + name)) read(entry, field);
    };
    section.visit(read_if_named);
  }
}

template <class T>
void read(const YamlValue& value, std::vector<T>& list) {
  list.clear();
  for (const YamlValue& item : items(value)) read(item, list.emplace_back());
}

// A section that may be missing: null and {} are the same as leaving it out.
template <Section S>
void read(const YamlValue& value, std::optional<S>& section) {
  section.reset();
  if (value.node.IsNull() || (value.node.IsMap() && value.node.size() == 0)) return;
  read(value, section.emplace());
}

template <Section S>
S read_document(const YamlDocument& document) {
  S section;
  read({document, document.root(), "", document.mark()}, section);
  return section;
}

}  // namespace uniattn
