// What the readers of tokenizer.json have in common.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/added_tokens.h"

namespace uniattn {

// A value for a message, cut where it is long.
std::string shortened(const nlohmann::json& value);

// An object of the file, with its place in it for messages. All throw Error, beginning with file and place.
class Section {
 public:
  // `object` must outlive this.
  Section(const nlohmann::json& object, std::string file, std::string path = "");
  std::string name_of(const std::string& key) const { return file_ + ": " + path_of(key); }
  Section section(const std::string& key) const { return {(*this)[key], file_, path_of(key)}; }
  // null when it is absent.
  const nlohmann::json& operator[](const std::string& key) const;
  // Refuses any other value of `key`.
  void expect(const std::string& key, const std::vector<nlohmann::json>& supported) const;
  // Refuses keys that are not in `known`.
  void expect_keys(const std::vector<std::string>& known) const;
  std::string type() const;
  // The items of the list `key` if this is a Sequence; else this alone.
  std::vector<Section> sequence(const std::string& key) const;
  [[noreturn]] void refuse_type() const;

 private:
  std::string path_of(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  const nlohmann::json& object_;
  std::string file_, path_;
};

std::vector<AddedToken> read_added_tokens(const Section& file);

// The two tokens of a merge, written "a b" or ["a", "b"]; nullopt for anything else.
std::optional<std::pair<std::string, std::string>> merge_parts(const nlohmann::json& merge);

// The one special token that a post-processor puts before the text; nullopt when there is none. Throws Error for a
// post-processor that does anything else to ids.
std::optional<int32_t> read_bos(const Section& file);

}  // namespace uniattn
