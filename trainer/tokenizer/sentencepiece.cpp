#include "tokenizer/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <map>
#include <span>

#include "support/error.h"
#include "tokenizer/pool.h"
#include "tokenizer/piece_boundaries.h"
#include "tokenizer/sentencepiece_proto.h"
#include "tokenizer/utf8.h"
#include "tokenizer/word_cache.h"

namespace uniattn {
namespace {

using sentencepiece::SentencePieceProcessor;

void load(SentencePieceProcessor& processor, std::string_view model, const std::string& path) {
  const auto status = processor.LoadFromSerializedProto({model.data(), model.size()});
  if (!status.ok()) fail("{}: not a SentencePiece model: {}", path, status.ToString());
}

void append(const SentencePieceProcessor& processor, std::string_view text, std::vector<int32_t>& ids) {
  std::vector<int> pieces;
  const auto status = processor.Encode({text.data(), text.size()}, &pieces);
  if (!status.ok()) fail("cannot tokenize: {}", status.ToString());
  ids.insert(ids.end(), pieces.begin(), pieces.end());
}

constexpr std::string_view kSpaceSymbol = "\u2581";

// What a piece stands for inside a text, "" for control and unknown pieces.
std::string bytes_of_piece(const SentencePieceProcessor& processor, int id) {
  if (processor.IsControl(id) || processor.IsUnknown(id)) return "";
  std::string text = processor.IdToPiece(id);
  if (processor.IsByte(id)) return {static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16))};  // "<0x0A>"
  for (size_t at; (at = text.find(kSpaceSymbol)) != text.npos;) text.replace(at, kSpaceSymbol.size(), " ");
  return text;
}

// Those that text is matched against.
std::vector<std::string> text_pieces(const SentencePieceProcessor& processor) {
  std::vector<std::string> pieces;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    if (!processor.IsControl(id) && !processor.IsUnknown(id) && !processor.IsByte(id))
      pieces.push_back(processor.IdToPiece(id));
  }
  return pieces;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view model, const TokenizerSettings& settings, const std::string& path) {
    load(whole_, model, path);
    pieces_ = whole_.GetPieceSize();
    vocab_size_ = settings.vocab_size.value_or(pieces_);
    if (vocab_size_ < pieces_) fail("{}: {} pieces, but config.json has vocab_size {}", path, pieces_, vocab_size_);
    find_special_tokens(settings, path);
    load_without_special(model, path);
    const SentencePieceTraits traits = read_traits(model);
    prefix_space_ = traits.add_dummy_prefix && settings.add_prefix_space;
    if (encodes_parts_independently(traits)) boundaries_.emplace(text_pieces(continuing_));
    for (int id = 0; id < pieces_; ++id) piece_bytes_.push_back(bytes_of_piece(whole_, id));
    bos_ = choose_id(settings.bos, settings.bos_token, whole_.bos_id());
    eos_ = choose_id(settings.eos, settings.eos_token, whole_.eos_id());
    for (const int32_t id : {bos_, eos_}) {
      if (id < -1 || id >= vocab_size_) fail("{}: bos or eos id {} is not in [0, {})", path, id, vocab_size_);
    }
  }

  std::vector<int32_t> encode(std::string_view text) const override { return encode(text, prefix_space_); }
  std::vector<int32_t> encode_continuation(std::string_view text) const override { return encode(text, false); }

  std::string_view token_bytes(int32_t id) const override {
    return id < pieces_ ? piece_bytes_[static_cast<size_t>(id)] : std::string_view();
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::vector<int> pieces;
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size_) fail("cannot decode id {}: expected ids in [0, {})", id, vocab_size_);
      if (id < pieces_) {
        pieces.push_back(id);
      } else if (!special_spelling(id)) {
        pieces.push_back(whole_.unk_id());  // rows of the embedding that only pad it
      }
    }
    std::string text;
    const auto status = whole_.Decode(pieces, &text);
    if (!status.ok()) fail("cannot decode: {}", status.ToString());
    return text;
  }

  std::optional<int32_t> special_id(std::string_view spelling) const override {
    const auto found = special_.find(spelling);
    return found == special_.end() ? std::nullopt : std::optional(found->second);
  }

  std::optional<std::string> special_spelling(int32_t id) const override {
    const auto found = std::ranges::find(special_, id, [](const auto& token) { return token.second; });
    return found == special_.end() ? std::nullopt : std::optional(found->first);
  }

  int64_t vocab_size() const override { return vocab_size_; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }

 private:
  // Control pieces, and what the settings call special. Those beyond the model's embeddings cannot be used and are left
  // out, as Llama-2 chats with a [PAD] of their own have them.
  void find_special_tokens(const TokenizerSettings& settings, const std::string& path) {
    for (int32_t id = 0; id < pieces_; ++id) {
      if (whole_.IsControl(id)) special_.emplace(whole_.IdToPiece(id), id);
    }
    for (const AddedToken& token : settings.added) {
      const int32_t known = whole_.PieceToId(token.content);
      const bool is_piece = whole_.IdToPiece(known) == token.content;
      const int32_t id = is_piece ? known : token.id;
      if (!is_piece && !token.special) {
        fail("{}: the added token '{}' is neither special nor a piece of the model, which is not supported", path,
             token.content);
      }
      if (is_piece && token.id >= 0 && token.id != known) {
        fail("{}: '{}' is piece {}, but tokenizer_config.json says {}", path, token.content, known, token.id);
      }
      if (token.special && id >= 0 && id < vocab_size_) special_.emplace(token.content, id);
    }
  }

  // Control pieces are not in the vocabulary that text is matched against, so that "<s>" in it is three characters.
  // Pieces such as Gemma's <start_of_turn> are user-defined ones in the file, which it does match.
  void load_without_special(std::string_view model, const std::string& path) {
    std::set<int32_t> ids;
    for (const auto& [spelling, id] : special_) {
      if (id < pieces_ && id != whole_.unk_id()) ids.insert(id);
    }
    const std::string changed = with_control_pieces(model, ids);
    // Protocol buffers merge a field into what came before, so four bytes at the end of the model (field 3,
    // normalizer_spec, of 2 bytes: its field 3, add_dummy_prefix = 0) make one that differs in nothing else.
    const std::string continuing = changed + std::string("\x1a\x02\x18\x00", 4);
    load(whole_, changed, path);
    load(continuing_, continuing, path);
  }

  std::vector<int32_t> encode(std::string_view text, bool prefix_space) const {
    // The library would quietly put U+FFFD in place of bad bytes.
    if (const auto bad = find_invalid_utf8(text)) fail("invalid UTF-8 at byte {} of the text", *bad);
    std::vector<int32_t> ids;
    if (boundaries_) {
      encode_parts(text, prefix_space, ids);
    } else {
      append(prefix_space ? whole_ : continuing_, text, ids);
    }
    return ids;
  }

  void encode_parts(std::string_view text, bool prefix_space, std::vector<int32_t>& ids) const {
    const auto cache = caches_.borrow();
    const auto add = [&](std::string_view part) {
      if (cache->find(part, ids)) return;
      const size_t before = ids.size();
      append(continuing_, part, ids);
      cache->store(part, std::span(ids).subspan(before));
    };
    boundaries_->split(text, [&](std::string_view part) {
      if (prefix_space && part.data() == text.data()) {
        add(" " + std::string(part));
      } else {
        add(part);
      }
    });
  }

  int32_t choose_id(std::optional<int32_t> configured, const std::string& spelling, int32_t of_model) const {
    return configured ? *configured : special_id(spelling).value_or(of_model);
  }

  SentencePieceProcessor whole_, continuing_;
  std::vector<std::string> piece_bytes_;
  std::map<std::string, int32_t, std::less<>> special_;
  int64_t pieces_ = 0, vocab_size_ = 0;
  int32_t bos_ = -1, eos_ = -1;
  bool prefix_space_ = true;  // before a beginning
  std::optional<PieceBoundaries> boundaries_;
  mutable Pool<WordCache> caches_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(std::string_view model, const TokenizerSettings& settings,
                                              const std::string& path) {
  return std::make_unique<SentencePieceTokenizer>(model, settings, path);
}

}  // namespace uniattn
