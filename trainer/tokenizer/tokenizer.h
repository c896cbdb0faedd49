// Text to token ids and back, with the ids of the model's original tokenizer.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace uniattn {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of `text` (UTF-8) without BOS or EOS. A special token's spelling inside the text is data, not control: such a
  // token is had from special_id() alone. Throws Error naming the byte where UTF-8 is invalid. Any number of threads
  // may encode at once.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // The same for text that follows other text: without the space that some tokenizers put before a beginning.
  // decode(encode(a) + encode_continuation(b)) is decode(encode(a + b)).
  virtual std::vector<int32_t> encode_continuation(std::string_view text) const = 0;
  // The bytes that the token stands for inside a text: those of all ids of an encoded text are that text, after the
  // space that encode() may put before it. Empty for special tokens and where it depends on more than the id. Valid as
  // long as this object.
  virtual std::string_view token_bytes(int32_t /*id*/) const { return {}; }
  // Throws Error for ids outside [0, vocab_size()). Special tokens decode to nothing, bytes that form no character to
  // U+FFFD; for text whose end may be cut inside a character see StreamDecoder.
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
  // The id of the special token that is written `spelling`; nullopt when there is none.
  virtual std::optional<int32_t> special_id(std::string_view /*spelling*/) const { return std::nullopt; }
  // The spelling of the special token `id`; nullopt when it is none.
  virtual std::optional<std::string> special_spelling(int32_t /*id*/) const { return std::nullopt; }
  // config.json's vocab_size where there is one: an embedding may be longer than the tokenizer's list of pieces.
  virtual int64_t vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;  // -1 when the model has none
  virtual int32_t eos_id() const = 0;  // -1 when the model has none
};

// The tokenizer of a Hugging Face directory: `tokenizer.model` (SentencePiece, or tiktoken as Llama-3 has it) or
// `tokenizer.json` (BPE, of bytes or with byte fallback). bos and eos come from config.json's ids where they are given
// (of several eos ids the first), then from tokenizer_config.json's bos_token and eos_token, then from the tokenizer's
// file. Throws Error that names the directory and what was looked for, or the file and what in it is damaged or not
// supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model_directory);

}  // namespace uniattn
