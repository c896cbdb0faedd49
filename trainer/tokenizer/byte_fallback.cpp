#include "tokenizer/byte_fallback.h"

#include <algorithm>
#include <array>
#include <span>
#include <unordered_map>

#include "support/error.h"
#include "tokenizer/added_token_vocabulary.h"
#include "tokenizer/piece_boundaries.h"
#include "tokenizer/pool.h"
#include "tokenizer/utf8.h"
#include "tokenizer/word_cache.h"

namespace uniattn {
namespace {

constexpr std::string_view kMetaspace = "\u2581";

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t at; (at = text.find(from)) != text.npos; text.remove_prefix(at + from.size()))
    (result += text.substr(0, at)) += to;
  return result += text;
}

size_t character_bytes(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

class ByteFallbackTokenizer : public AddedTokenVocabulary {
 public:
  ByteFallbackTokenizer(ByteFallbackDefinition definition, const TokenizerSettings& settings, const std::string& path)
      : AddedTokenVocabulary(definition.added, definition.pieces.size(), settings, definition.bos, path),
        pieces_(std::move(definition.pieces)),
        byte_ids_(std::move(definition.bytes)),
        merges_(definition.merges),
        boundaries_(pieces_),
        matcher_(definition.added),
        prefix_(settings.add_prefix_space ? definition.prefix : SpacePrefix::never) {
    find_bytes();
    for (size_t id = 0; id < pieces_.size(); ++id) {
      if (!pieces_[id].empty() && character_bytes(pieces_[id][0]) == pieces_[id].size())
        characters_.emplace(pieces_[id], static_cast<int32_t>(id));
    }
  }

  std::vector<int32_t> encode(std::string_view text) const override { return encode(text, true); }
  std::vector<int32_t> encode_continuation(std::string_view text) const override { return encode(text, false); }

  std::string_view token_bytes(int32_t id) const override {
    return static_cast<size_t>(id) < token_bytes_.size() ? token_bytes_[static_cast<size_t>(id)] : std::string_view();
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string bytes = concatenated(ids);
    if (prefix_ != SpacePrefix::never && bytes.starts_with(' ')) bytes.erase(0, 1);
    return replace_invalid_utf8(bytes);
  }

 private:
  struct Workspace {
    BpeScratch merging;
    WordCache cache;
  };

  void find_bytes() {
    token_bytes_.resize(ids());
    for (size_t id = 0; id < pieces_.size(); ++id) token_bytes_[id] = replaced(pieces_[id], kMetaspace, " ");
    for (size_t byte = 0; byte < byte_ids_.size(); ++byte)
      token_bytes_[static_cast<size_t>(byte_ids_[byte])] = {static_cast<char>(byte)};
    for (const auto& [id, token] : added()) {
      token_bytes_[static_cast<size_t>(id)] = token.special ? "" : replaced(token.content, kMetaspace, " ");
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool beginning) const {
    if (const auto bad = find_invalid_utf8(text)) fail("invalid UTF-8 at byte {} of the text", *bad);
    if (text.size() > INT32_MAX / 3) fail("a text of {} bytes: expected at most {}", text.size(), INT32_MAX / 3);
    std::vector<int32_t> ids;
    const auto workspace = workspaces_.borrow();
    matcher_.split(
        text, [&](std::string_view part) { encode_part(part, part.data() == text.data(), beginning, *workspace, ids); },
        [&](int32_t id) { ids.push_back(id); });
    return ids;
  }

  // `first`: the part is where the text begins.
  bool takes_prefix(std::string_view part, bool first, bool beginning) const {
    if (prefix_ == SpacePrefix::never || (first && !beginning)) return false;
    if (prefix_ == SpacePrefix::always) return true;
    return (first || prefix_ == SpacePrefix::parts) && !part.starts_with(kMetaspace);
  }

  void encode_part(std::string_view part, bool first, bool beginning, Workspace& workspace,
                   std::vector<int32_t>& ids) const {
    std::string written = replaced(part, " ", kMetaspace);
    if (takes_prefix(written, first, beginning)) written.insert(0, kMetaspace);
    boundaries_.split(written, [&](std::string_view word) {
      if (workspace.cache.find(word, ids)) return;
      const size_t before = ids.size();
      encode_word(word, workspace.merging, ids);
      workspace.cache.store(word, std::span(ids).subspan(before));
    });
  }

  void encode_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
    scratch.symbols.clear();
    const auto add = [&](int32_t id) { scratch.symbols.push_back({.id = id, .previous = -1, .next = -1}); };
    while (!word.empty()) {
      const std::string_view character = word.substr(0, character_bytes(word[0]));
      word.remove_prefix(character.size());
      if (const auto found = characters_.find(character); found != characters_.end()) {
        add(found->second);
      } else {
        for (const char byte : character) add(byte_ids_[static_cast<uint8_t>(byte)]);
      }
    }
    merges_.apply(scratch, ids);
  }

  std::vector<std::string> pieces_;
  std::vector<int32_t> byte_ids_;
  BpeMerges merges_;
  PieceBoundaries boundaries_;
  AddedTokenMatcher matcher_;
  SpacePrefix prefix_;
  std::vector<std::string> token_bytes_;
  std::unordered_map<std::string_view, int32_t> characters_;  // views of pieces_
  mutable Pool<Workspace> workspaces_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_fallback_tokenizer(ByteFallbackDefinition definition,
                                                        const TokenizerSettings& settings, const std::string& path) {
  return std::make_unique<ByteFallbackTokenizer>(std::move(definition), settings, path);
}

}  // namespace uniattn
