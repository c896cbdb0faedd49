#include "tokenizer/added_token_vocabulary.h"

#include <algorithm>

#include "support/error.h"

namespace uniattn {

AddedTokenVocabulary::AddedTokenVocabulary(const std::vector<AddedToken>& added, size_t learned,
                                           const TokenizerSettings& settings, std::optional<int32_t> bos,
                                           const std::string& path)
    : ids_(learned) {
  for (const AddedToken& token : added) {
    const auto [first, is_new] = added_.emplace(token.id, token);
    if (!is_new)
      fail("{}: the added tokens '{}' and '{}' have the same id", path, first->second.content, token.content);
    ids_ = std::max(ids_, static_cast<size_t>(token.id) + 1);
  }
  vocab_size_ = settings.vocab_size.value_or(static_cast<int64_t>(ids_));
  if (vocab_size_ < static_cast<int64_t>(ids_))
    fail("{}: {} ids, but config.json has vocab_size {}", path, ids_, vocab_size_);
  bos_ = choose_id(settings.bos, settings.bos_token, bos);
  eos_ = choose_id(settings.eos, settings.eos_token, std::nullopt);
  for (const int32_t id : {bos_, eos_}) {
    if (id >= vocab_size_) fail("{}: bos or eos id {} is not in [0, {})", path, id, vocab_size_);
  }
}

std::optional<int32_t> AddedTokenVocabulary::special_id(std::string_view spelling) const {
  for (const auto& [id, token] : added_) {
    if (token.special && token.content == spelling) return id;
  }
  return std::nullopt;
}

std::optional<std::string> AddedTokenVocabulary::special_spelling(int32_t id) const {
  const auto found = added_.find(id);
  return found != added_.end() && found->second.special ? std::optional(found->second.content) : std::nullopt;
}

std::string AddedTokenVocabulary::concatenated(const std::vector<int32_t>& ids) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size_) fail("cannot decode id {}: expected ids in [0, {})", id, vocab_size_);
    bytes += token_bytes(id);
  }
  return bytes;
}

int32_t AddedTokenVocabulary::choose_id(std::optional<int32_t> configured, const std::string& spelling,
                                        std::optional<int32_t> of_file) const {
  if (configured) return *configured;
  if (const auto named = special_id(spelling)) return *named;
  return of_file.value_or(-1);
}

}  // namespace uniattn
