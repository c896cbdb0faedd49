#include "data/tokenize.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "support/error.h"

namespace uniattn {
namespace {

bool has_labels(const TokenizedDocument& document) {
  return std::find(document.supervised.begin(), document.supervised.end(), 1) != document.supervised.end();
}

void truncate(TokenizedDocument& document, size_t length) {
  document.tokens.resize(length);
  document.supervised.resize(length);
  if (!document.terminator) return;
  // A cut prompt followed by its end with loss would teach to answer nothing.
  document.tokens.back() = *document.terminator;
  document.supervised.back() = document.supervised[length - 2];
}

std::vector<TokenizedDocument> windows(const TokenizedDocument& document, size_t length) {
  std::vector<TokenizedDocument> parts;
  for (size_t begin = 0; begin < document.tokens.size(); begin += length) {
    const size_t end = std::min(begin + length, document.tokens.size());
    TokenizedDocument part;
    for (size_t t = begin; t < end; ++t) part.push(document.tokens[t], document.supervised[t] != 0);
    parts.push_back(std::move(part));
  }
  return parts;
}

bool is_text(const Piece& piece) {
  return piece.kind == Piece::Kind::text;
}

// Whether each id of `texts`, encoded as one, carries loss, found by comparing its bytes with the text; nullopt where
// one reaches across two labels or does not stand for the bytes at its place.
std::optional<std::vector<bool>> labels_of(const std::vector<int32_t>& ids, std::span<const Piece> texts,
                                           const std::string& whole, const Tokenizer& tokenizer) {
  if (texts.size() == 1) return std::vector<bool>(ids.size(), texts[0].supervised);
  size_t bytes = 0;
  for (const int32_t id : ids) bytes += tokenizer.token_bytes(id).size();
  if (bytes != whole.size() && bytes != whole.size() + 1) return std::nullopt;
  size_t before = bytes - whole.size();  // the space that encode() puts before a text

  std::vector<bool> labels;
  size_t at = 0, text = 0, text_end = texts[0].text.size();
  for (const int32_t id : ids) {
    std::string_view token = tokenizer.token_bytes(id);
    if (token.empty()) return std::nullopt;
    if (before > 0 && token[0] != ' ') return std::nullopt;
    token.remove_prefix(std::exchange(before, 0));
    if (whole.compare(at, token.size(), token) != 0) return std::nullopt;
    while (at >= text_end && text + 1 < texts.size()) text_end += texts[++text].text.size();
    at += token.size();
    if (at > text_end) return std::nullopt;
    labels.push_back(texts[text].supervised);
  }
  return labels;
}

// `beginning`: whether nothing comes before `texts`. Neighbours among them differ in their loss.
void append_texts(std::span<const Piece> texts, bool beginning, const Tokenizer& tokenizer,
                  TokenizedDocument& document) {
  const auto encode = [&](const std::string& text, bool first) {
    return first ? tokenizer.encode(text) : tokenizer.encode_continuation(text);
  };
  std::string whole;
  for (const Piece& piece : texts) whole += piece.text;
  const std::vector<int32_t> ids = encode(whole, beginning);
  if (const auto labels = labels_of(ids, texts, whole, tokenizer)) {
    for (size_t i = 0; i < ids.size(); ++i) document.push(ids[i], (*labels)[i]);
    return;
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    for (const int32_t id : encode(texts[i].text, beginning && i == 0)) document.push(id, texts[i].supervised);
  }
}

}  // namespace

void TokenizedDocument::push(int32_t token, bool with_loss) {
  supervised.push_back(with_loss && !tokens.empty() ? 1 : 0);  // nothing predicts the first token
  tokens.push_back(token);
}

TokenizedDocument tokenize_pieces(std::span<const Piece> pieces, const Tokenizer& tokenizer) {
  TokenizedDocument document;
  const bool brings_bos = !pieces.empty() && pieces[0].kind == Piece::Kind::bos;
  if (!brings_bos && tokenizer.bos_id() >= 0) document.push(tokenizer.bos_id(), false);
  for (size_t i = 0; i < pieces.size();) {
    if (pieces[i].kind == Piece::Kind::text) {
      const auto end = std::ranges::find_if_not(pieces.subspan(i), is_text) - pieces.begin();
      append_texts(pieces.subspan(i, static_cast<size_t>(end) - i), i == 0, tokenizer, document);
      i = static_cast<size_t>(end);
      continue;
    }
    const int32_t id = piece_id(pieces[i], tokenizer);
    if (id >= 0) document.push(id, pieces[i].supervised);
    if (pieces[i].supervised) document.terminator = id;
    ++i;
  }
  return document;
}

TokenizedDocument read_ids(std::string_view line, int64_t vocab_size) {
  constexpr std::string_view kBlank = " \t\r\v\f";
  TokenizedDocument document;
  for (size_t at; (at = line.find_first_not_of(kBlank)) != line.npos;) {
    line.remove_prefix(at);
    const std::string_view word = line.substr(0, line.find_first_of(kBlank));
    int64_t id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0 || id >= vocab_size) {
      fail("expected token ids in [0, {}) separated by spaces, got '{}'", vocab_size, word.substr(0, 40));
    }
    document.push(static_cast<int32_t>(id), true);
    line.remove_prefix(word.size());
  }
  return document;
}

FittedDocument fit_length(TokenizedDocument document, int64_t max_length, const std::string& over_long) {
  const auto limit = static_cast<size_t>(max_length);
  FittedDocument fitted{.fit = Fit::kWhole, .parts = {}};
  if (document.tokens.size() <= limit) {
    fitted.parts.push_back(std::move(document));
  } else if (over_long == "drop") {
    return {.fit = Fit::kTooLong, .parts = {}};
  } else if (over_long == "error") {
    fail("{} tokens are more than max_length {}: raise it, or set over_long to truncate, drop or split",
         document.tokens.size(), max_length);
  } else if (over_long == "split") {
    fitted = {.fit = Fit::kSplit, .parts = windows(document, limit)};
  } else {
    truncate(document, limit);
    fitted.fit = Fit::kTruncated;
    fitted.parts.push_back(std::move(document));
  }
  std::erase_if(fitted.parts, [](const TokenizedDocument& part) { return !has_labels(part); });
  if (fitted.parts.empty()) fitted.fit = Fit::kWithoutLabels;
  return fitted;
}

}  // namespace uniattn
