#include "tokenizer/tokenizer_json_parts.h"

#include <algorithm>

#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/bpe_definition.h"

namespace uniattn {
namespace {

using nlohmann::json;

// A template may put one special token, the BOS, before the text.
void read_template(const Section& section, std::optional<int32_t>& bos_id) {
  section.expect_keys({"type", "single", "pair", "special_tokens"});
  const json& single = section["single"];
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const bool has_bos = single.is_array() && single.size() == 2 && single[0].is_object() &&
                       single[0].contains("SpecialToken") && single[1] == text;
  if (single == json::array({text})) return;
  if (!has_bos)
    fail("{} is {}, which is not supported: expected the text, or one special token before it",
         section.name_of("single"), shortened(single));
  const Section bos{single[0]["SpecialToken"], section.name_of("single"), "SpecialToken"};
  if (!bos["id"].is_string()) fail("{}: expected a string", bos.name_of("id"));
  const json& ids = section.section("special_tokens").section(bos["id"])["ids"];
  if (!ids.is_array() || ids.size() != 1 || !ids[0].is_number_integer() || ids[0] < 0 || ids[0] >= kMaxTokens) {
    fail("{}: expected one id for {}", section.name_of("special_tokens"), bos["id"].dump());
  }
  bos_id = ids[0].get<int32_t>();
}

}  // namespace

std::string shortened(const json& value) {
  const std::string text = value.dump();
  return text.size() <= 80 ? text : text.substr(0, 80) + "...";
}

Section::Section(const json& object, std::string file, std::string path)
    : object_(object), file_(std::move(file)), path_(std::move(path)) {
  if (!object.is_object())
    fail("{}: expected an object{}, got {}", file_, path_.empty() ? "" : " as " + path_, shortened(object));
}

const json& Section::operator[](const std::string& key) const {
  static const json kAbsent;
  const auto found = object_.find(key);
  return found == object_.end() ? kAbsent : *found;
}

void Section::expect(const std::string& key, const std::vector<json>& supported) const {
  const json& value = (*this)[key];
  if (std::find(supported.begin(), supported.end(), value) != supported.end()) return;
  fail("{} is {}, which is not supported: expected {}", name_of(key), shortened(value), json(supported).dump());
}

void Section::expect_keys(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) fail("{} is not supported", name_of(key));
  }
}

std::string Section::type() const {
  if (!(*this)["type"].is_string()) fail("{}: expected a string", name_of("type"));
  return (*this)["type"];
}

std::vector<Section> Section::sequence(const std::string& key) const {
  if (type() != "Sequence") return {*this};
  expect_keys({"type", key});
  if (!(*this)[key].is_array()) fail("{}: expected a list", name_of(key));
  std::vector<Section> items;
  for (const json& item : (*this)[key]) {
    items.push_back({item, file_, fmt::format("{}[{}]", path_of(key), items.size())});
  }
  return items;
}

void Section::refuse_type() const {
  fail("{}: \"{}\" is not supported", name_of("type"), type());
}

std::vector<AddedToken> read_added_tokens(const Section& file) {
  std::vector<AddedToken> added;
  const json& list = file["added_tokens"];
  if (!list.is_array() && !list.is_null()) fail("{}: expected a list", file.name_of("added_tokens"));
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", file.name_of("added_tokens"), i);
    const json& entry = list[i];
    if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_integer() || entry["id"] >= kMaxTokens) {
      fail("{}: expected an object with an \"id\" in [0, {})", where, kMaxTokens);
    }
    added.push_back(read_added_token(entry, entry["id"].get<int64_t>(), where));
  }
  return added;
}

std::optional<std::pair<std::string, std::string>> merge_parts(const json& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::pair(merge[0].get<std::string>(), merge[1].get<std::string>());
  }
  if (!merge.is_string()) return std::nullopt;
  const std::string& text = merge.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos) return std::nullopt;
  return std::pair(text.substr(0, space), text.substr(space + 1));
}

std::optional<int32_t> read_bos(const Section& file) {
  std::optional<int32_t> bos;
  if (file["post_processor"].is_null()) return bos;
  for (const Section& step : file.section("post_processor").sequence("processors")) {
    if (step.type() == "TemplateProcessing") {
      read_template(step, bos);
    } else if (step.type() != "ByteLevel") {  // which moves offsets, not ids
      step.refuse_type();
    }
  }
  return bos;
}

std::vector<AddedToken> parse_added_tokens(std::string_view text, const std::string& where) {
  return read_added_tokens({parse_json(text, where), where});
}

}  // namespace uniattn
