#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

bool read_flag(const json& entry, const char* key, const std::string& where) {
  const auto found = entry.find(key);
  if (found == entry.end()) return false;
  if (!found->is_boolean()) fail("{}: \"{}\": expected true or false, got {}", where, key, found->type_name());
  return found->get<bool>();
}

}  // namespace

AddedToken read_added_token(const json& entry, int64_t id, const std::string& where) {
  if (!entry.is_object() || !entry.contains("content") || !entry["content"].is_string() || entry["content"] == "") {
    fail("{}: expected an object whose \"content\" is a string that is not empty", where);
  }
  if (id < 0 || id > INT32_MAX) fail("{}: {} is no token id", where, id);
  AddedToken token{.content = entry["content"],
                   .id = static_cast<int32_t>(id),
                   .special = read_flag(entry, "special", where),
                   .normalized = read_flag(entry, "normalized", where)};
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (read_flag(entry, key, where) && !token.special) {
      fail("{}: \"{}\" of '{}' is true, which is not supported for a token that is not special", where, key,
           token.content);
    }
  }
  return token;
}

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    if (token.special) continue;
    (token.normalized ? second_ : first_)[static_cast<uint8_t>(token.content[0])].push_back(token);
    empty_ = false;
  }
  for (ByFirstByte* round : {&first_, &second_}) {
    for (auto& bucket : *round) {
      std::stable_sort(bucket.begin(), bucket.end(),
                       [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
    }
  }
}

void AddedTokenMatcher::split_by(const ByFirstByte& tokens, std::string_view text,
                                 const std::function<void(std::string_view)>& text_part,
                                 const std::function<void(int32_t)>& token) {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const auto& bucket = tokens[static_cast<uint8_t>(text[at])];
    const auto found = std::find_if(bucket.begin(), bucket.end(), [&](const AddedToken& candidate) {
      return text.substr(at).starts_with(candidate.content);
    });
    if (found == bucket.end()) {
      ++at;
      continue;
    }
    if (at > done) text_part(text.substr(done, at - done));
    token(found->id);
    done = at += found->content.size();
  }
  if (done < text.size()) text_part(text.substr(done));
}

void AddedTokenMatcher::split(std::string_view text, const std::function<void(std::string_view)>& text_part,
                              const std::function<void(int32_t)>& token) const {
  if (empty_) return text_part(text);
  split_by(
      first_, text, [&](std::string_view part) { split_by(second_, part, text_part, token); }, token);
}

}  // namespace uniattn
