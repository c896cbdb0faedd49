// What a byte-level BPE tokenizer consists of, and the two kinds of files that say so.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/byte_bpe.h"

namespace uniattn {

struct BpeDefinition {
  std::vector<std::string> tokens;  // bytes by id; "" for special tokens and ids without a token
  std::vector<Merge> merges;
  bool whole_words = false;           // see ByteBpe
  std::vector<std::string> patterns;  // text is parted by the first, its pieces by the next, and so on
  std::vector<AddedToken> added;
  std::optional<int32_t> bos;  // where the file says it
};

// Ids are below this in every file that is accepted.
constexpr int64_t kMaxTokens = 1 << 20;

// A Hugging Face tokenizer.json. Throws Error, beginning with `where`, for what is damaged, and for every setting that
// would change ids and is not honoured here. `truncation` and `padding` are left alone: they belong to calls of the
// tokenizer, and `transformers` sets them anew for each.
BpeDefinition parse_tokenizer_json(std::string_view text, const std::string& where);

// The added tokens of any tokenizer.json alone, whatever its model is. Throws Error as above.
std::vector<AddedToken> parse_added_tokens(std::string_view text, const std::string& where);

// A tiktoken file, lines of base64 and rank, read as Llama-3's: the file itself names neither pattern nor special
// tokens. `added`: the special tokens; when empty, the list published with Llama-3.1. Throws Error naming `where` and
// the line.
BpeDefinition parse_tiktoken(std::string_view text, const std::vector<AddedToken>& added, const std::string& where);

// Whether `text` begins as a tiktoken file does.
bool is_tiktoken(std::string_view text);

}  // namespace uniattn
