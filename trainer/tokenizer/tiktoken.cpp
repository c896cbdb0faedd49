#include <charconv>
#include <unordered_map>

#include "support/error.h"
#include "tokenizer/bpe_definition.h"

namespace uniattn {
namespace {

constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr size_t kLongestToken = 1024;  // bytes; merges are found by trying every place where a token could be parted

std::optional<uint32_t> base64_value(char c) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const size_t value = kDigits.find(c);
  return value == kDigits.npos ? std::nullopt : std::optional(static_cast<uint32_t>(value));
}

// nullopt when `text` is no base64 with its padding.
std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  std::string bytes;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool pads = i >= text.size() - padding;
    const auto value = pads ? 0u : base64_value(text[i]);
    if (!value) return std::nullopt;
    bits = bits << 6 | *value;
    if (i % 4 != 3) continue;
    for (const int shift : {16, 8, 0}) bytes += static_cast<char>(bits >> shift);
    bits = 0;
  }
  bytes.erase(bytes.size() - padding);
  return bytes;
}

struct RankLine {
  std::string bytes;
  int64_t rank;
};

std::optional<RankLine> parse_line(std::string_view line) {
  const size_t space = line.find(' ');
  if (space == line.npos) return std::nullopt;
  const auto bytes = decode_base64(line.substr(0, space));
  const std::string_view digits = line.substr(space + 1);
  int64_t rank = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (!bytes || error != std::errc() || end != digits.data() + digits.size() || rank < 0) return std::nullopt;
  return RankLine{*bytes, rank};
}

// tiktoken merges any two neighbours that together are a token, the lowest rank first.
std::vector<Merge> merges_of(const std::vector<std::string>& tokens) {
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) ids.emplace(tokens[id], static_cast<int32_t>(id));
  }
  std::vector<Merge> merges;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    for (size_t at = 1; at < token.size(); ++at) {
      const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
      if (left == ids.end() || right == ids.end()) continue;
      merges.push_back({left->second, right->second, static_cast<int32_t>(id), static_cast<int32_t>(id)});
    }
  }
  return merges;
}

std::vector<AddedToken> llama3_special_tokens(int32_t first_id) {
  std::vector<std::string> names = {"<|begin_of_text|>",
                                    "<|end_of_text|>",
                                    "<|reserved_special_token_0|>",
                                    "<|reserved_special_token_1|>",
                                    "<|finetune_right_pad_id|>",
                                    "<|reserved_special_token_2|>",
                                    "<|start_header_id|>",
                                    "<|end_header_id|>",
                                    "<|eom_id|>",
                                    "<|eot_id|>",
                                    "<|python_tag|>"};
  for (int n = 3; names.size() < 256; ++n) names.push_back(fmt::format("<|reserved_special_token_{}|>", n));
  std::vector<AddedToken> tokens;
  for (std::string& name : names) tokens.push_back({.content = std::move(name), .id = first_id++, .special = true});
  return tokens;
}

}  // namespace

bool is_tiktoken(std::string_view text) {
  return parse_line(text.substr(0, text.find('\n'))).has_value();
}

BpeDefinition parse_tiktoken(std::string_view text, const std::vector<AddedToken>& added, const std::string& where) {
  BpeDefinition definition;
  definition.whole_words = true;
  definition.patterns = {kLlama3Pattern};
  definition.added = added;
  std::unordered_map<std::string, int64_t> seen;
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (line.empty()) continue;
    auto parsed = parse_line(line);
    if (!parsed)
      fail("{}:{}: expected a token in base64, a space and its rank, got '{}'", where, number, line.substr(0, 80));
    auto& [bytes, rank] = *parsed;
    if (bytes.size() > kLongestToken)
      fail("{}:{}: a token of {} bytes, more than {}", where, number, bytes.size(), kLongestToken);
    if (rank >= kMaxTokens) fail("{}:{}: rank {} is not below {}", where, number, rank, kMaxTokens);
    if (definition.tokens.size() <= static_cast<size_t>(rank)) definition.tokens.resize(static_cast<size_t>(rank) + 1);
    std::string& token = definition.tokens[static_cast<size_t>(rank)];
    if (!token.empty()) fail("{}:{}: rank {} appears twice", where, number, rank);
    if (!seen.emplace(bytes, rank).second)
      fail("{}:{}: the token of rank {} has rank {} too", where, number, seen[bytes], rank);
    token = std::move(bytes);
  }
  if (definition.tokens.empty()) fail("{}: there is no token in it", where);
  definition.merges = merges_of(definition.tokens);
  if (added.empty()) {
    definition.added = llama3_special_tokens(static_cast<int32_t>(definition.tokens.size()));
    definition.bos = definition.added.front().id;
  }
  return definition;
}

}  // namespace uniattn
