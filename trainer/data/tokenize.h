// From rendered pieces to ids and labels, and what becomes of a document that is too long.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/shards.h"
#include "data/templates.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

struct TokenizedDocument {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> supervised;    // as in Document
  std::optional<int32_t> terminator;  // the last token of its kind that ends a supervised text
  void push(int32_t token, bool with_loss);
  Document view() const { return {tokens, supervised}; }
};

// The pieces as one document, BOS (when the tokenizer has one) in front unless they begin with it.
// Texts that follow each other are encoded as one, which gives the ids of the original tokenizer, and each token gets
// the label of the bytes that it stands for. Where a token would reach across the line between prompt and answer, the
// two are encoded apart: the loss begins exactly at the answer, after the prompt that generation sees.
// Throws Error for invalid UTF-8 and for an EOS or special token that the tokenizer does not have.
TokenizedDocument tokenize_pieces(std::span<const Piece> pieces, const Tokenizer& tokenizer);

// Whitespace-separated ids as they stand, all with loss but the first. Throws Error for what is not an id in [0,
// vocab_size).
TokenizedDocument read_ids(std::string_view line, int64_t vocab_size);

// What became of a record; kBad and kFiltered ones never became a document.
enum class Fit { kWhole, kTruncated, kSplit, kTooLong, kWithoutLabels, kBad, kFiltered };

struct FittedDocument {
  Fit fit;
  std::vector<TokenizedDocument> parts;  // empty when the document is dropped
};

// Brings `document` to at most `max_length` tokens by `over_long`: truncate (its terminator, if it has one, takes the
// last place, with loss when the token before it has), drop, split (into consecutive windows), error (throws Error).
// Parts without any loss are left out.
FittedDocument fit_length(TokenizedDocument document, int64_t max_length, const std::string& over_long);

}  // namespace uniattn
