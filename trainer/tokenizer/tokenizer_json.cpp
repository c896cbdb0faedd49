#include <algorithm>
#include <unordered_map>

#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/bpe_definition.h"
#include "tokenizer/byte_level.h"

namespace uniattn {
namespace {

using nlohmann::json;

// What a ByteLevel pre-tokenizer splits by when `use_regex` is set: GPT-2's pattern.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string shortened(const json& value) {
  const std::string text = value.dump();
  return text.size() <= 80 ? text : text.substr(0, 80) + "...";
}

// An object of the file, with its place in it for messages.
class Section {
 public:
  Section(const json& object, std::string file, std::string path = "")
      : object_(object), file_(std::move(file)), path_(std::move(path)) {
    if (!object.is_object())
      fail("{}: expected an object{}, got {}", file_, path_.empty() ? "" : " as " + path_, shortened(object));
  }
  std::string path_of(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  std::string name_of(const std::string& key) const { return file_ + ": " + path_of(key); }
  Section section(const std::string& key) const { return {(*this)[key], file_, path_of(key)}; }

  // null when it is absent.
  const json& operator[](const std::string& key) const {
    static const json kAbsent;
    const auto found = object_.find(key);
    return found == object_.end() ? kAbsent : *found;
  }

  // Refuses any other value of `key`.
  void expect(const std::string& key, const std::vector<json>& supported) const {
    const json& value = (*this)[key];
    if (std::find(supported.begin(), supported.end(), value) != supported.end()) return;
    fail("{} is {}, which is not supported: expected {}", name_of(key), shortened(value), json(supported).dump());
  }

  // Refuses keys that are not in `known`.
  void expect_keys(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) fail("{} is not supported", name_of(key));
    }
  }

  std::string type() const {
    if (!(*this)["type"].is_string()) fail("{}: expected a string", name_of("type"));
    return (*this)["type"];
  }

  // The items of the list `key` if this is a Sequence; else this alone.
  std::vector<Section> sequence(const std::string& key) const {
    if (type() != "Sequence") return {*this};
    expect_keys({"type", key});
    if (!(*this)[key].is_array()) fail("{}: expected a list", name_of(key));
    std::vector<Section> items;
    for (const json& item : (*this)[key]) {
      items.push_back({item, file_, fmt::format("{}[{}]", path_of(key), items.size())});
    }
    return items;
  }

  [[noreturn]] void refuse_type() const { fail("{}: \"{}\" is not supported", name_of("type"), type()); }

 private:
  const json& object_;
  std::string file_, path_;
};

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

// Ids of the tokens that text can become, by the way the file writes them.
using Vocabulary = std::unordered_map<std::string_view, int32_t>;

Vocabulary read_vocabulary(const Section& model, BpeDefinition& definition) {
  std::unordered_map<std::string_view, bool> special;
  for (const AddedToken& token : definition.added) special.emplace(token.content, token.special);
  if (!model["vocab"].is_object()) fail("{}: expected an object of tokens and ids", model.name_of("vocab"));

  Vocabulary vocabulary;
  for (const auto& [token, value] : model["vocab"].get_ref<const json::object_t&>()) {
    const std::string where = fmt::format("{}: token {}", model.name_of("vocab"), shortened(token));
    if (!value.is_number_integer() || value < 0 || value >= kMaxTokens) {
      fail("{}: expected an id in [0, {}), got {}", where, kMaxTokens, shortened(value));
    }
    const auto id = value.get<size_t>();
    const auto added = special.find(token);
    if (added != special.end() && added->second) continue;  // its spelling in a text is no more than text
    const auto bytes = bytes_of_symbols(token);
    if (!bytes && added != special.end()) continue;
    if (!bytes || bytes->empty()) fail("{} is not written in the byte-level alphabet", where);
    if (definition.tokens.size() <= id) definition.tokens.resize(id + 1);
    if (!definition.tokens[id].empty()) fail("{}: another token has the id {} too", where, id);
    definition.tokens[id] = *bytes;
    vocabulary.emplace(token, static_cast<int32_t>(id));
  }
  return vocabulary;
}

// Both ways of writing a merge: "a b" and ["a", "b"].
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

void read_merges(const Section& model, const Vocabulary& vocabulary, BpeDefinition& definition) {
  const json& merges = model["merges"];
  if (!merges.is_array()) fail("{}: expected a list", model.name_of("merges"));
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto parts = merge_parts(merges[rank]);
    const auto where = [&] {
      return fmt::format("{}[{}], {}", model.name_of("merges"), rank, shortened(merges[rank]));
    };
    if (!parts) fail("{}: expected two tokens", where());
    const auto id = [&](const std::string& token) {
      const auto found = vocabulary.find(token);
      if (found == vocabulary.end()) fail("{}: '{}' is not an ordinary token of the vocabulary", where(), token);
      return found->second;
    };
    const auto& [left, right] = *parts;
    definition.merges.push_back({id(left), id(right), id(left + right), static_cast<int32_t>(rank)});
  }
}

void read_model(const Section& model, BpeDefinition& definition) {
  model.expect_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                     "byte_fallback", "ignore_merges", "vocab", "merges"});
  model.expect("type", {nullptr, "BPE"});
  if (model["byte_fallback"] == true) {
    fail("{} is true: this is a SentencePiece model in another form; put its original tokenizer.model beside it",
         model.name_of("byte_fallback"));
  }
  model.expect("byte_fallback", {nullptr, false});
  model.expect("dropout", {nullptr, 0});
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) model.expect(key, {nullptr, ""});
  // unk_token and fuse_unk are about bytes without a token: text that has one is refused.
  model.expect("ignore_merges", {nullptr, false, true});
  definition.whole_words = model["ignore_merges"] == true;
  read_merges(model, read_vocabulary(model, definition), definition);
}

void read_byte_level(const Section& section, BpeDefinition& definition) {
  section.expect_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  section.expect("add_prefix_space", {false});
  section.expect("use_regex", {nullptr, false, true});
  if (section["use_regex"] != false) definition.patterns.push_back(kGpt2Pattern);
}

void read_split(const Section& section, BpeDefinition& definition) {
  section.expect_keys({"type", "pattern", "behavior", "invert"});
  section.expect("behavior", {"Isolated"});
  section.expect("invert", {nullptr, false});
  const Section pattern = section.section("pattern");
  pattern.expect_keys({"Regex"});
  if (!pattern["Regex"].is_string()) fail("{}: expected a string", pattern.name_of("Regex"));
  definition.patterns.push_back(pattern["Regex"]);
}

void read_pre_tokenizer(const Section& pre_tokenizer, BpeDefinition& definition) {
  const std::vector<Section> steps = pre_tokenizer.sequence("pretokenizers");
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool last = i + 1 == steps.size();
    if (last && steps[i].type() == "ByteLevel") return read_byte_level(steps[i], definition);
    if (last || steps[i].type() != "Split") steps[i].refuse_type();
    read_split(steps[i], definition);
  }
  fail("{}: expected Split steps and ByteLevel at the end", pre_tokenizer.name_of("pretokenizers"));
}

// A template may put one special token, the BOS, before the text.
void read_template(const Section& section, BpeDefinition& definition) {
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
  definition.bos = ids[0].get<int32_t>();
}

void read_post_processor(const Section& post_processor, BpeDefinition& definition) {
  for (const Section& step : post_processor.sequence("processors")) {
    if (step.type() == "TemplateProcessing") {
      read_template(step, definition);
    } else if (step.type() != "ByteLevel") {  // which moves offsets, not ids
      step.refuse_type();
    }
  }
}

}  // namespace

BpeDefinition parse_tokenizer_json(std::string_view text, const std::string& where) {
  const json document = parse_json(text, where);
  const Section file(document, where);
  file.expect_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                    "decoder", "model"});
  BpeDefinition definition;
  definition.added = read_added_tokens(file);
  read_model(file.section("model"), definition);
  file.expect("normalizer", {nullptr, {{"type", "Sequence"}, {"normalizers", json::array()}}});
  read_pre_tokenizer(file.section("pre_tokenizer"), definition);
  if (!file["post_processor"].is_null()) read_post_processor(file.section("post_processor"), definition);
  if (!file["decoder"].is_null() && file.section("decoder").type() != "ByteLevel")
    file.section("decoder").refuse_type();
  return definition;
}

std::vector<AddedToken> parse_added_tokens(std::string_view text, const std::string& where) {
  return read_added_tokens({parse_json(text, where), where});
}

}  // namespace uniattn
