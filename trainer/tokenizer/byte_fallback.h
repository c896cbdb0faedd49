// BPE over characters whose unknown ones become bytes: what a tokenizer.json makes of a SentencePiece model, as that of
// Llama-2, Mistral and Gemma.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe_merges.h"
#include "tokenizer/settings.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// Where U+2581, as which spaces are written, is put in front.
enum class SpacePrefix {
  never,
  beginning,  // of a text that does not begin with a space
  parts,      // as `beginning`, of every part between added tokens
  always,     // of every part, even before a space
};

struct ByteFallbackDefinition {
  std::vector<std::string> pieces;  // by id, spaces as U+2581; "" for special tokens and ids without a piece
  std::vector<int32_t> bytes;       // ids of the 256 bytes
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  SpacePrefix prefix = SpacePrefix::never;
  std::optional<int32_t> bos;  // where the file says it
};

// Whether a tokenizer.json says so. Throws Error, beginning with `where`, for what is no JSON object.
bool has_byte_fallback(std::string_view text, const std::string& where);

// Throws Error, beginning with `where`, for what is damaged, and for every setting that would change ids and is not
// honoured here.
ByteFallbackDefinition parse_byte_fallback(std::string_view text, const std::string& where);

// `path`: the definition's file, for messages. Throws Error naming it when ids exceed `settings.vocab_size` or bos/eos
// name no token.
std::unique_ptr<Tokenizer> make_byte_fallback_tokenizer(ByteFallbackDefinition definition,
                                                        const TokenizerSettings& settings, const std::string& path);

}  // namespace uniattn
