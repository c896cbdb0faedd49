#include "tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <map>

#include "support/error.h"
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

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(BpeDefinition definition, const TokenizerSettings& settings, const std::string& path)
      : bpe_(std::move(definition.tokens), definition.merges, definition.whole_words), matcher_(definition.added) {
    for (const std::string& pattern : definition.patterns) patterns_.emplace_back(pattern);
    for (const AddedToken& token : definition.added) {
      const auto known =
          static_cast<size_t>(token.id) < bpe_.tokens().size() ? bpe_.tokens()[static_cast<size_t>(token.id)] : "";
      if (!known.empty() && known != token.content) {
        fail("{}: the added token '{}' has the id {} of '{}'", path, token.content, token.id, known);
      }
      const auto [first, is_new] = added_.emplace(token.id, token);
      if (!is_new)
        fail("{}: the added tokens '{}' and '{}' have the same id", path, first->second.content, token.content);
    }
    int64_t ids = static_cast<int64_t>(bpe_.tokens().size());
    if (!added_.empty()) ids = std::max<int64_t>(ids, added_.rbegin()->first + 1);
    vocab_size_ = settings.vocab_size.value_or(ids);
    if (vocab_size_ < ids) fail("{}: {} ids, but config.json has vocab_size {}", path, ids, vocab_size_);
    bos_ = choose_id(settings.bos, settings.bos_token, definition.bos);
    eos_ = choose_id(settings.eos, settings.eos_token, std::nullopt);
    for (const int32_t id : {bos_, eos_}) {
      if (id >= vocab_size_) fail("{}: bos or eos id {} is not in [0, {})", path, id, vocab_size_);
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
    if (const auto added = added_.find(id); added != added_.end())
      return added->second.special ? std::string_view() : added->second.content;
    return static_cast<size_t>(id) < bpe_.tokens().size() ? bpe_.tokens()[static_cast<size_t>(id)] : std::string_view();
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size_) fail("cannot decode id {}: expected ids in [0, {})", id, vocab_size_);
      bytes += token_bytes(id);
    }
    return replace_invalid_utf8(bytes);
  }

  std::optional<int32_t> special_id(std::string_view spelling) const override {
    for (const auto& [id, token] : added_) {
      if (token.special && token.content == spelling) return id;
    }
    return std::nullopt;
  }

  std::optional<std::string> special_spelling(int32_t id) const override {
    const auto added = added_.find(id);
    return added != added_.end() && added->second.special ? std::optional(added->second.content) : std::nullopt;
  }

  int64_t vocab_size() const override { return vocab_size_; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }

 private:
  int32_t choose_id(std::optional<int32_t> configured, const std::string& spelling,
                    std::optional<int32_t> of_file) const {
    if (configured) return *configured;
    if (const auto named = special_id(spelling)) return *named;
    return of_file.value_or(-1);
  }

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
  std::map<int32_t, AddedToken> added_;
  int64_t vocab_size_ = 0;
  int32_t bos_ = -1, eos_ = -1;
  mutable Pool<Workspace> workspaces_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeDefinition definition, const TokenizerSettings& settings,
                                              const std::string& path) {
  return std::make_unique<BpeTokenizer>(std::move(definition), settings, path);
}

}  // namespace uniattn
