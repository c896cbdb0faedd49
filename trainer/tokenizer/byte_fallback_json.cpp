#include <algorithm>
#include <unordered_map>

#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/bpe_definition.h"
#include "tokenizer/byte_fallback.h"
#include "tokenizer/tokenizer_json_parts.h"

namespace uniattn {
namespace {

using nlohmann::json;

constexpr const char* kWrittenSpace = "\u2581";
const json kReplaceSpaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kWrittenSpace}};
const json kPrependSpace = {{"type", "Prepend"}, {"prepend", kWrittenSpace}};

bool spells_special(const std::vector<AddedToken>& added, const std::string& spelling) {
  return std::ranges::any_of(added,
                             [&](const AddedToken& token) { return token.special && token.content == spelling; });
}

using PieceIds = std::unordered_map<std::string, int32_t>;

PieceIds read_pieces(const Section& model, ByteFallbackDefinition& definition) {
  if (!model["vocab"].is_object()) fail("{}: expected an object of pieces and ids", model.name_of("vocab"));
  PieceIds ids;
  for (const auto& [piece, value] : model["vocab"].get_ref<const json::object_t&>()) {
    if (!value.is_number_integer() || value < 0 || value >= kMaxTokens) {
      fail("{}: piece {}: expected an id in [0, {}), got {}", model.name_of("vocab"), shortened(piece), kMaxTokens,
           shortened(value));
    }
    const auto id = value.get<size_t>();
    ids.emplace(piece, static_cast<int32_t>(id));
    if (definition.pieces.size() <= id) definition.pieces.resize(id + 1);
    if (!definition.pieces[id].empty()) fail("{}: two pieces have the id {}", model.name_of("vocab"), id);
    if (!spells_special(definition.added, piece)) definition.pieces[id] = piece;
  }
  return ids;
}

void read_bytes(const Section& model, const PieceIds& ids, ByteFallbackDefinition& definition) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(fmt::format("<0x{:02X}>", byte));
    if (found == ids.end()) {
      fail("{}: there is no <0x{:02X}>, which byte_fallback needs for text that has no piece", model.name_of("vocab"),
           byte);
    }
    definition.bytes.push_back(found->second);
    definition.pieces[static_cast<size_t>(found->second)].clear();  // its spelling in a text is no more than text
  }
}

void read_piece_merges(const Section& model, const PieceIds& ids, ByteFallbackDefinition& definition) {
  const json& merges = model["merges"];
  if (!merges.is_array()) fail("{}: expected a list", model.name_of("merges"));
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto parts = merge_parts(merges[rank]);
    if (!parts) fail("{}[{}], {}: expected two pieces", model.name_of("merges"), rank, shortened(merges[rank]));
    int32_t found[3];
    const std::string spellings[] = {parts->first, parts->second, parts->first + parts->second};
    for (size_t i = 0; i < 3; ++i) {
      const auto id = ids.find(spellings[i]);
      if (id == ids.end()) fail("{}[{}]: '{}' is not in the vocabulary", model.name_of("merges"), rank, spellings[i]);
      found[i] = id->second;
    }
    // A merge to or from a special token or a byte would make control of its spelling.
    const auto is_text = [&](int32_t id) { return !definition.pieces[static_cast<size_t>(id)].empty(); };
    if (std::ranges::all_of(found, is_text))
      definition.merges.push_back({found[0], found[1], found[2], static_cast<int32_t>(rank)});
  }
}

void read_piece_model(const Section& model, ByteFallbackDefinition& definition) {
  model.expect_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                     "byte_fallback", "ignore_merges", "vocab", "merges"});
  model.expect("type", {nullptr, "BPE"});
  model.expect("dropout", {nullptr, 0});
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) model.expect(key, {nullptr, ""});
  model.expect("ignore_merges", {nullptr, false});
  // unk_token and fuse_unk never apply: every character is a piece or bytes.
  const PieceIds ids = read_pieces(model, definition);
  read_bytes(model, ids, definition);
  read_piece_merges(model, ids, definition);
}

// How spaces are written, by either of the normalizer and the Metaspace pre-tokenizer.
SpacePrefix read_spaces(const Section& file) {
  const json& normalizer = file["normalizer"];
  if (!file["pre_tokenizer"].is_null()) {
    const Section step = file.section("pre_tokenizer");
    if (step.type() == "Metaspace") {
      file.expect("normalizer", {nullptr});
      step.expect_keys({"type", "replacement", "prepend_scheme", "split"});
      step.expect("replacement", {kWrittenSpace});
      step.expect("split", {false});
      step.expect("prepend_scheme", {"always", "first", "never"});
      const json& scheme = step["prepend_scheme"];
      return scheme == "always" ? SpacePrefix::parts : scheme == "first" ? SpacePrefix::beginning : SpacePrefix::never;
    }
    // Gemma's: parts text at its spaces, of which the normalizer has left none.
    file.expect(
        "pre_tokenizer",
        {{{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "MergedWithPrevious"}, {"invert", false}}});
  }
  if (normalizer == json{{"type", "Sequence"}, {"normalizers", {kPrependSpace, kReplaceSpaces}}})
    return SpacePrefix::always;
  file.expect("normalizer", {kReplaceSpaces});
  return SpacePrefix::never;
}

}  // namespace

bool has_byte_fallback(std::string_view text, const std::string& where) {
  const json document = parse_json(text, where);
  const Section file(document, where);
  return file["model"].is_object() && file.section("model")["byte_fallback"] == true;
}

ByteFallbackDefinition parse_byte_fallback(std::string_view text, const std::string& where) {
  const json document = parse_json(text, where);
  const Section file(document, where);
  file.expect_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                    "decoder", "model"});
  ByteFallbackDefinition definition;
  definition.added = read_added_tokens(file);
  for (const AddedToken& token : definition.added) {
    if (!token.special && token.normalized)
      fail("{}: the added token '{}' is searched for in normalized text, which is not supported here", where,
           token.content);
  }
  read_piece_model(file.section("model"), definition);
  definition.prefix = read_spaces(file);
  definition.bos = read_bos(file);
  return definition;
}

}  // namespace uniattn
