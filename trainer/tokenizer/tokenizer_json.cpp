#include <algorithm>
#include <unordered_map>

#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/bpe_definition.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/tokenizer_json_parts.h"

namespace uniattn {
namespace {

using nlohmann::json;

// What a ByteLevel pre-tokenizer splits by when `use_regex` is set: GPT-2's pattern.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

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
  definition.bos = read_bos(file);
  if (!file["decoder"].is_null() && file.section("decoder").type() != "ByteLevel")
    file.section("decoder").refuse_type();
  return definition;
}

}  // namespace uniattn
