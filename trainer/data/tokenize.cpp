#include "data/tokenize.h"

#include <algorithm>
#include <charconv>

#include "support/error.h"

namespace uniattn {
namespace {

bool has_labels(const TokenizedDocument& document) {
  return std::find(document.supervised.begin(), document.supervised.end(), 1) != document.supervised.end();
}

void truncate(TokenizedDocument& document, size_t length, std::optional<int32_t> end) {
  document.tokens.resize(length);
  document.supervised.resize(length);
  if (!end) return;
  // A cut prompt followed by EOS with loss would teach to answer nothing.
  document.tokens.back() = *end;
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

}  // namespace

void TokenizedDocument::push(int32_t token, bool with_loss) {
  supervised.push_back(with_loss && !tokens.empty() ? 1 : 0);  // nothing predicts the first token
  tokens.push_back(token);
}

TokenizedDocument tokenize_spans(const std::vector<Span>& spans, const Tokenizer& tokenizer) {
  if (tokenizer.eos_id() < 0)
    fail("the tokenizer has no EOS token to end answers with: set eos_token_id in config.json");
  TokenizedDocument document;
  if (tokenizer.bos_id() >= 0) document.push(tokenizer.bos_id(), false);
  for (size_t i = 0; i < spans.size(); ++i) {
    // Generation encodes the prompt alone and samples what follows, so the prompt's ids must not depend on the answer:
    // spans are encoded apart. All but the first as continuations: together they then decode to exactly the text of the
    // template, where SentencePiece would otherwise put a space before every span.
    const auto& [text, supervised] = spans[i];
    for (const int32_t id : i == 0 ? tokenizer.encode(text) : tokenizer.encode_continuation(text)) {
      document.push(id, supervised);
    }
    if (supervised) document.push(tokenizer.eos_id(), true);
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

FittedDocument fit_length(TokenizedDocument document, int64_t max_length, const std::string& over_long,
                          std::optional<int32_t> end) {
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
    truncate(document, limit, end);
    fitted.fit = Fit::kTruncated;
    fitted.parts.push_back(std::move(document));
  }
  std::erase_if(fitted.parts, [](const TokenizedDocument& part) { return !has_labels(part); });
  if (fitted.parts.empty()) fitted.fit = Fit::kWithoutLabels;
  return fitted;
}

}  // namespace uniattn
