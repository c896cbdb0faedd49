#include "config/reader.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "config/nearest.h"

namespace uniattn {
namespace {

// Neither quoted nor tagged: what YAML would take for a number or a boolean.
bool is_plain(const YAML::Node& node) {
  return node.IsScalar() && node.Tag() == "?";
}

std::string describe(const YAML::Node& node) {
  if (node.IsNull()) return "nothing";
  if (node.IsMap()) return "a mapping";
  if (node.IsSequence()) return "a list";
  return is_plain(node) ? fmt::format("'{}'", node.Scalar()) : fmt::format("the string \"{}\"", node.Scalar());
}

// The whole of a plain scalar as a number of type T.
template <class T>
std::optional<T> parse_number(const YAML::Node& node) {
  if (!is_plain(node)) return std::nullopt;
  const std::string& text = node.Scalar();
  T number{};
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string join(const std::string& parent, const std::string& name) {
  return parent.empty() ? name : parent + "." + name;
}

}  // namespace

void YamlValue::refuse(const std::string& expected) const {
  document.fail_at(key, mark, fmt::format("expected {}, found {}", expected, describe(node)));
}

void read(const YamlValue& value, std::string& field) {
  if (!value.node.IsScalar()) value.refuse("a string");
  field = value.node.Scalar();
}

void read(const YamlValue& value, int64_t& field) {
  const std::optional<int64_t> number = parse_number<int64_t>(value.node);
  if (!number) value.refuse("an integer");
  field = *number;
}

void read(const YamlValue& value, double& field) {
  const std::optional<double> number = parse_number<double>(value.node);
  if (!number || !std::isfinite(*number)) value.refuse("a number");
  field = *number;
}

void read(const YamlValue& value, bool& field) {
  const bool known = is_plain(value.node) && (value.node.Scalar() == "true" || value.node.Scalar() == "false");
  if (!known) value.refuse("true or false");
  field = value.node.Scalar() == "true";
}

void read(const YamlValue& value, std::optional<double>& field) {
  field.reset();
  if (value.node.IsScalar() && value.node.Scalar() == "auto") return;
  if (!parse_number<double>(value.node)) value.refuse("a number or `auto`");
  read(value, field.emplace());
}

void read(const YamlValue& value, CompensationConfig& field) {
  if (value.node.IsMap() && value.node.size() > 0) {
    field.kind = "low_rank";
    for (const YamlValue& entry : entries(value, {"rank"})) read(entry, field.rank);
    return;
  }
  const std::string kind = value.node.IsScalar() ? value.node.Scalar() : "";
  if (kind != "none" && kind != "full") value.refuse("none, full or {rank: R}");
  field = {.kind = kind, .rank = 0};
}

void read(const YamlValue& value, TrainedSet& field) {
  field = {.kind = "patterns", .patterns = {}};
  if (value.node.IsSequence()) return read(value, field.patterns);
  if (value.node.IsScalar()) field.kind = value.node.Scalar();
  if (field.kind != "compensation" && field.kind != "all")
    value.refuse("compensation, all or a list of patterns such as ['*.self_attn.*']");
}

std::vector<YamlValue> entries(const YamlValue& mapping, const std::vector<std::string>& known) {
  if (!mapping.node.IsMap() && !mapping.node.IsNull()) {
    mapping.refuse(fmt::format("a mapping with the keys {}", fmt::join(known, ", ")));
  }
  std::vector<YamlValue> found;
  std::set<std::string> seen;
  for (const auto& entry : mapping.node) {
    const YAML::Mark mark = entry.first.Mark();
    if (!entry.first.IsScalar())
      mapping.document.fail_at(mapping.key, mark, "a key must be a word, found " + describe(entry.first));
    const std::string& name = entry.first.Scalar();
    const std::string key = join(mapping.key, name);
    if (std::ranges::find(known, name) == known.end()) {
      mapping.document.fail_at(key, mark,
                               fmt::format("unknown key; did you mean '{}'? The keys here are {}", nearest(name, known),
                                           fmt::join(known, ", ")));
    }
    if (!seen.insert(name).second) mapping.document.fail_at(key, mark, "this key is given twice; remove one of them");
    found.push_back({mapping.document, entry.second, key, mark});
  }
  return found;
}

std::vector<YamlValue> items(const YamlValue& list) {
  if (!list.node.IsSequence() && !list.node.IsNull()) list.refuse("a list");
  std::vector<YamlValue> found;
  for (const YAML::Node& item : list.node) {
    found.push_back({list.document, item, join(list.key, std::to_string(found.size())), item.Mark()});
  }
  return found;
}

}  // namespace uniattn
