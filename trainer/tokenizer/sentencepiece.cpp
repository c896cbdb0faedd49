#include "tokenizer/sentencepiece.h"

#include <sentencepiece_processor.h>

#include "storage/mapped_file.h"
#include "support/error.h"
#include "tokenizer/utf8.h"

namespace uniattn {
namespace {

using sentencepiece::SentencePieceProcessor;

void load(SentencePieceProcessor& processor, std::string_view model, const std::string& path) {
  const auto status = processor.LoadFromSerializedProto({model.data(), model.size()});
  if (!status.ok()) fail("{}: not a SentencePiece model: {}", path, status.ToString());
}

std::vector<int32_t> encode_with(const SentencePieceProcessor& processor, std::string_view text) {
  // The library would quietly put U+FFFD in place of bad bytes.
  if (const auto bad = find_invalid_utf8(text)) fail("invalid UTF-8 at byte {} of the text", *bad);
  std::vector<int> ids;
  const auto status = processor.Encode({text.data(), text.size()}, &ids);
  if (!status.ok()) fail("cannot tokenize: {}", status.ToString());
  return ids;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, const TokenIds& ids) {
    const MappedFile file(path);
    load(whole_, file.bytes(), path);
    // Protocol buffers merge a repeated field into what came before, so four bytes at the end of the model (field 3,
    // normalizer_spec, of 2 bytes: its field 3, add_dummy_prefix = 0) make one that differs in nothing else.
    load(continuing_, std::string(file.bytes()) + std::string("\x1a\x02\x18\x00", 4), path);
    pieces_ = whole_.GetPieceSize();
    vocab_size_ = ids.vocab_size.value_or(pieces_);
    if (vocab_size_ < pieces_) fail("{}: {} pieces, but config.json has vocab_size {}", path, pieces_, vocab_size_);
    bos_ = ids.bos.value_or(whole_.bos_id());
    eos_ = ids.eos.value_or(whole_.eos_id());
    for (const int32_t id : {bos_, eos_}) {
      if (id < -1 || id >= vocab_size_) fail("{}: bos or eos id {} is not in [0, {})", path, id, vocab_size_);
    }
  }

  // Control pieces are not in the vocabulary that text is matched against, so "<s>" in it is three characters.
  std::vector<int32_t> encode(std::string_view text) const override { return encode_with(whole_, text); }
  std::vector<int32_t> encode_continuation(std::string_view text) const override {
    return encode_with(continuing_, text);
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::vector<int> pieces;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size_) fail("cannot decode id {}: expected ids in [0, {})", id, vocab_size_);
      pieces.push_back(id < pieces_ ? id : whole_.unk_id());  // rows of the embedding that only pad it
    }
    std::string text;
    const auto status = whole_.Decode(pieces, &text);
    if (!status.ok()) fail("cannot decode: {}", status.ToString());
    return text;
  }

  int64_t vocab_size() const override { return vocab_size_; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }

 private:
  SentencePieceProcessor whole_, continuing_;
  int64_t pieces_ = 0, vocab_size_ = 0;
  int32_t bos_ = -1, eos_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& path, const TokenIds& ids) {
  return std::make_unique<SentencePieceTokenizer>(path, ids);
}

}  // namespace uniattn
