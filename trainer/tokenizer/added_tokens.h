// Tokens that a model has beside those its tokenizer learned: special ones, which stand for no text, and whole strings
// that text is searched for first.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace uniattn {

struct AddedToken {
  std::string content;
  int32_t id = -1;          // -1: whatever id the tokenizer's own file gives to `content`
  bool special = false;     // never made from text
  bool normalized = false;  // searched for after those that are not
};

// One entry of tokenizer.json's added_tokens or tokenizer_config.json's added_tokens_decoder. Throws Error, beginning
// with `where`, for fields that are missing or of another type, and for single_word, lstrip and rstrip of tokens that
// are not special, which are not supported.
AddedToken read_added_token(const nlohmann::json& entry, int64_t id, const std::string& where);

// Finds those added tokens in text that are not special.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);
  // Calls `text_part` and `token` for what `text` consists of, in order. Of tokens that begin at the same place the
  // longest counts, and the leftmost of those that overlap.
  void split(std::string_view text, const std::function<void(std::string_view)>& text_part,
             const std::function<void(int32_t)>& token) const;

 private:
  using ByFirstByte = std::array<std::vector<AddedToken>, 256>;  // longest first
  static void split_by(const ByFirstByte& tokens, std::string_view text,
                       const std::function<void(std::string_view)>& text_part,
                       const std::function<void(int32_t)>& token);
  ByFirstByte first_, second_;  // the two rounds, see AddedToken::normalized
  bool empty_ = true;
};

}  // namespace uniattn
