// A YAML file with overrides applied, and the place that each key came from.
#pragma once
#include <yaml-cpp/yaml.h>

#include <string>
#include <vector>

namespace uniattn {

class YamlDocument {
 public:
  // Reads `path`, then applies overrides "key.path=value" in order: values are YAML, list items go by number, missing
  // sections are added. Throws UsageError with file and line when the file is missing or is not one YAML document,
  // naming the override when that cannot be applied.
  YamlDocument(std::string path, const std::vector<std::string>& overrides);

  const YAML::Node& root() const { return root_; }
  YAML::Mark mark() const { return root_.Mark(); }

  // Throws UsageError "PLACE: KEY: REASON". The place is the override that set the key or a section around it, else the
  // file and the line of `mark`.
  [[noreturn]] void fail_at(const std::string& key, const YAML::Mark& mark, const std::string& reason) const;
  // The same, with the line of the deepest part of `key` that the file has.
  [[noreturn]] void fail_at(const std::string& key, const std::string& reason) const;

 private:
  struct Override {
    std::string key, text;
  };
  void apply(const std::string& override);

  std::string path_;
  YAML::Node root_;
  std::vector<Override> overrides_;
};

}  // namespace uniattn
