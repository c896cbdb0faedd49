// What the tokenizers of a tokenizer.json have in common: ids, with added tokens among and behind the learned ones.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/settings.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

class AddedTokenVocabulary : public Tokenizer {
 public:
  std::optional<int32_t> special_id(std::string_view spelling) const override;
  std::optional<std::string> special_spelling(int32_t id) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }

 protected:
  // `learned`: the ids below it are those of the file's own vocabulary; `bos`: where the file says it; `path`: the
  // file, for messages. Throws Error when two added tokens share an id, ids exceed `settings.vocab_size`, or bos/eos
  // name no token.
  AddedTokenVocabulary(const std::vector<AddedToken>& added, size_t learned, const TokenizerSettings& settings,
                       std::optional<int32_t> bos, const std::string& path);

  const std::map<int32_t, AddedToken>& added() const { return added_; }
  // Of the learned and the added tokens; what config.json's vocab_size has beyond it only pads the embedding.
  size_t ids() const { return ids_; }
  // The bytes that `ids` stand for, one after the other. Throws Error for ids outside [0, vocab_size()).
  std::string concatenated(const std::vector<int32_t>& ids) const;

 private:
  int32_t choose_id(std::optional<int32_t> configured, const std::string& spelling,
                    std::optional<int32_t> of_file) const;

  std::map<int32_t, AddedToken> added_;
  size_t ids_ = 0;
  int64_t vocab_size_ = 0;
  int32_t bos_ = -1, eos_ = -1;
};

}  // namespace uniattn
