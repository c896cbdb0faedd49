#include "tokenizer/bpe_tokenizer.h"

#include "support/error.h"
#include "tokenizer/added_token_vocabulary.h"
#include "tokenizer/pool.h"
#include "tokenizer/split_pattern.h"
#include "tokenizer/utf8.h"
#include "tokenizer/word_cache.h"

namespace uniattn {
namespace {

// What one thread needs while it encodes a text.
struct Workspace {
  SplitPattern::Scratch match;
  BpeScratch merging;
  WordCache cache;
};

class BpeTokenizer : public AddedTokenVocabulary {
 public:
  BpeTokenizer(BpeDefinition definition, const TokenizerSettings& settings, const std::string& path)
      : AddedTokenVocabulary(definition.added, definition.tokens.size(), settings, definition.bos, path),
        bpe_(std::move(definition.tokens), definition.merges, definition.whole_words),
        matcher_(definition.added) {
    for (const std::string& pattern : definition.patterns) patterns_.emplace_back(pattern);
    for (const AddedToken& token : definition.added) {
      const auto known =
          static_cast<size_t>(token.id) < bpe_.tokens().size() ? bpe_.tokens()[static_cast<size_t>(token.id)] : "";
      if (!known.empty() && known != token.content) {
        fail("{}: the added token '{}' has the id {} of '{}'", path, token.content, token.id, known);
      }
    }
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    if (const auto bad = find_invalid_utf8(text)) fail("invalid UTF-8 at byte {} of the text", *bad);
    if (text.size() > INT32_MAX) fail("a text of {} bytes: expected at most {}", text.size(), INT32_MAX);
    std::vector<int32_t> ids;
    const auto workspace = workspaces_.borrow();
    matcher_.split(
        text, [&](std::string_view part) { encode_part(part, 0, *workspace, ids); },
        [&](int32_t id) { ids.push_back(id); });
    return ids;
  }
  std::vector<int32_t> encode_continuation(std::string_view text) const override { return encode(text); }

  std::string_view token_bytes(int32_t id) const override {
    if (const auto found = added().find(id); found != added().end())
      return found->second.special ? std::string_view() : found->second.content;
    return static_cast<size_t>(id) < bpe_.tokens().size() ? bpe_.tokens()[static_cast<size_t>(id)] : std::string_view();
  }

  std::string decode(const std::vector<int32_t>& ids) const override { return replace_invalid_utf8(concatenated(ids)); }

 private:
  void encode_part(std::string_view part, size_t pattern, Workspace& workspace, std::vector<int32_t>& ids) const {
    if (pattern == patterns_.size()) return encode_word(part, workspace, ids);
    patterns_[pattern].split(part, workspace.match,
                             [&](std::string_view piece) { encode_part(piece, pattern + 1, workspace, ids); });
  }

  void encode_word(std::string_view word, Workspace& workspace, std::vector<int32_t>& ids) const {
    if (workspace.cache.find(word, ids)) return;
    const size_t before = ids.size();
    bpe_.encode(word, workspace.merging, ids);
    workspace.cache.store(word, std::span(ids).subspan(before));
  }

  ByteBpe bpe_;
  AddedTokenMatcher matcher_;
  std::vector<SplitPattern> patterns_;
  mutable Pool<Workspace> workspaces_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeDefinition definition, const TokenizerSettings& settings,
                                              const std::string& path) {
  return std::make_unique<BpeTokenizer>(std::move(definition), settings, path);
}

}  // namespace uniattn
