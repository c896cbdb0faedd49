#include "config/yaml_document.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <ranges>
#include <span>

#include "support/error.h"

namespace uniattn {
namespace {

std::string read_text(const std::string& path) {
  if (!std::filesystem::exists(path)) fail_usage("{}: no such file; give the path of a YAML file", path);
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    fail_usage("{}: cannot be read; give the path of a YAML file", path);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

// Counted from 1. The mark of a node that no text stands for (an empty file) has line -1.
int line_of(const YAML::Mark& mark) {
  return std::max(mark.line, 0) + 1;
}

YAML::Node parse_file(const std::string& path) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(read_text(path));
    if (documents.size() > 1) fail_usage("{}: holds {} YAML documents; expected one", path, documents.size());
    return documents.empty() ? YAML::Node() : documents.front();
  } catch (const YAML::Exception& error) {
    fail_usage("{}:{}: not valid YAML: {}", path, line_of(error.mark), error.msg);
  }
}

std::vector<std::string> split(const std::string& key) {
  std::vector<std::string> parts(1);
  for (char c : key) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::optional<size_t> list_index(const std::string& part, const YAML::Node& list) {
  size_t index = 0;
  const auto [end, status] = std::from_chars(part.data(), part.data() + part.size(), index);
  if (status != std::errc() || end != part.data() + part.size() || index >= list.size()) return std::nullopt;
  return index;
}

// Sets what `parts` lead to from `node`. YAML::Node is a handle: assigning to it writes into the tree.
void assign(YAML::Node node, std::span<const std::string> parts, const YAML::Node& value, const std::string& override) {
  if (parts.empty()) {
    node = value;
  } else if (!node.IsDefined() || node.IsNull() || node.IsMap()) {
    assign(node[parts[0]], parts.subspan(1), value, override);
  } else if (node.IsSequence()) {
    const std::optional<size_t> index = list_index(parts[0], node);
    if (!index) {
      fail_usage("override '{}': '{}' is not an item of this list of {}; items go by number from 0", override, parts[0],
                 node.size());
    }
    assign(node[*index], parts.subspan(1), value, override);
  } else {
    fail_usage("override '{}': '{}' is sought inside the value '{}', which has no keys", override, parts[0],
               node.Scalar());
  }
}

// The mark of the deepest node along `parts` that exists; of a mapping's value the line of its key.
YAML::Mark deepest_mark(const YAML::Node& node, std::span<const std::string> parts, const YAML::Mark& mark) {
  if (parts.empty()) return mark;
  if (node.IsMap()) {
    for (const auto& entry : node) {
      if (entry.first.IsScalar() && entry.first.Scalar() == parts[0]) {
        return deepest_mark(entry.second, parts.subspan(1), entry.first.Mark());
      }
    }
  } else if (node.IsSequence()) {
    if (const auto index = list_index(parts[0], node)) {
      return deepest_mark(node[*index], parts.subspan(1), node[*index].Mark());
    }
  }
  return mark;
}

}  // namespace

YamlDocument::YamlDocument(std::string path, const std::vector<std::string>& overrides)
    : path_(std::move(path)), root_(parse_file(path_)) {
  for (const std::string& override : overrides) apply(override);
}

void YamlDocument::apply(const std::string& override) {
  const size_t equals = override.find('=');
  const std::string key = override.substr(0, equals);
  const std::vector<std::string> parts = split(key);
  if (equals == std::string::npos || std::ranges::find(parts, "") != parts.end()) {
    fail_usage("override '{}': expected key.path=value, such as optimizer.micro_batch=2", override);
  }
  try {
    assign(root_, parts, YAML::Load(override.substr(equals + 1)), override);
  } catch (const YAML::Exception& error) {
    fail_usage("override '{}': the value is not valid YAML: {}", override, error.msg);
  }
  overrides_.push_back({key, override});
}

void YamlDocument::fail_at(const std::string& key, const YAML::Mark& mark, const std::string& reason) const {
  for (const Override& override : std::views::reverse(overrides_)) {
    if (key == override.key || key.starts_with(override.key + ".")) {
      fail_usage("override '{}': {}: {}", override.text, key, reason);
    }
  }
  const std::string place = fmt::format("{}:{}", path_, line_of(mark));
  if (key.empty()) fail_usage("{}: {}", place, reason);
  fail_usage("{}: {}: {}", place, key, reason);
}

void YamlDocument::fail_at(const std::string& key, const std::string& reason) const {
  fail_at(key, deepest_mark(root_, split(key), root_.Mark()), reason);
}

}  // namespace uniattn
