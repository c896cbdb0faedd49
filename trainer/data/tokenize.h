// From spans to ids and labels, and what becomes of a document that is too long.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/prepare.h"
#include "data/shards.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

struct TokenizedDocument {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> supervised;  // as in Document
  void push(int32_t token, bool with_loss);
  Document view() const { return {tokens, supervised}; }
};

// BOS (when the tokenizer has one), the spans, and EOS after each supervised span as part of its loss.
// Throws Error for invalid UTF-8 and for a tokenizer without EOS.
TokenizedDocument tokenize_spans(const std::vector<Span>& spans, const Tokenizer& tokenizer);

// Whitespace-separated ids as they stand, all with loss but the first. Throws Error for what is not an id in [0,
// vocab_size).
TokenizedDocument read_ids(std::string_view line, int64_t vocab_size);

enum class Fit { kWhole, kTruncated, kSplit, kTooLong, kWithoutLabels };

struct FittedDocument {
  Fit fit;
  std::vector<TokenizedDocument> parts;  // empty when the document is dropped
};

// Brings `document` to at most `max_length` tokens by `over_long`: truncate (`end`, if given, takes the last place,
// with loss when the token before it has), drop, split (into consecutive windows), error (throws Error). Parts without
// any loss are left out.
FittedDocument fit_length(TokenizedDocument document, int64_t max_length, const std::string& over_long,
                          std::optional<int32_t> end);

}  // namespace uniattn
