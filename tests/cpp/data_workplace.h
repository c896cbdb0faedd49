// What the tests of training data share: a tokenizer of bytes and a directory to prepare data in.
#pragma once
#include "catch.h"
#include "data/prepare.h"
#include "data/tokenize.h"
#include "support/error.h"
#include "temporary_directory.h"

namespace uniattn::testing {

// One id per byte, from 3; a beginning gets a space in front, as SentencePiece models do.
class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(int32_t bos = 1) : bos_(bos) {}
  std::vector<int32_t> encode(std::string_view text) const override {
    return text.empty() ? std::vector<int32_t>() : encode_continuation(" " + std::string(text));
  }
  std::vector<int32_t> encode_continuation(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c) + 3);
    return ids;
  }
  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 3) text += static_cast<char>(id - 3);
    }
    return text.starts_with(' ') ? text.substr(1) : text;
  }
  std::string_view token_bytes(int32_t id) const override {
    static const std::string kBytes = [] {
      std::string bytes;
      for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
      return bytes;
    }();
    return id >= 3 ? std::string_view(kBytes).substr(static_cast<size_t>(id) - 3, 1) : std::string_view();
  }
  int64_t vocab_size() const override { return 259; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return 2; }

 private:
  int32_t bos_;
};

// The text that carries loss; EOS shows as '$'.
inline std::string learnt(const Document& document) {
  std::string text;
  for (size_t t = 0; t < document.tokens.size(); ++t) {
    if (document.supervised[t]) text += document.tokens[t] == 2 ? '$' : static_cast<char>(document.tokens[t] - 3);
  }
  return text;
}

inline std::string all_text(const Document& document) {
  return ByteTokenizer().decode({document.tokens.begin(), document.tokens.end()});
}

struct Workplace {
  TemporaryDirectory directory;
  ByteTokenizer tokenizer;
  PrepareOptions options{.max_length = 4096, .bad_records = "error"};

  DataSource source(const std::string& name, const std::string& format, const std::string& text, double weight = 1) {
    write_bytes(directory / name, text);
    return {.path = directory / name, .format = format, .weight = weight};
  }
  TokenShards prepare(const std::vector<DataSource>& sources) {
    return prepare_tokens(sources, tokenizer, directory.path(), options, directory / "prepared");
  }
  TokenShards prepare(const std::string& name, const std::string& format, const std::string& text) {
    return prepare({source(name, format, text)});
  }
  std::string refusal(const std::string& name, const std::string& format, const std::string& text) {
    return message_of<Error>([&] { prepare(name, format, text); });
  }
};

// Lines of format `ids`, each of 2 to max_length random tokens.
inline std::string ids_lines(int documents, uint64_t seed, int max_length) {
  std::mt19937_64 random(seed);
  std::string text;
  for (int i = 0; i < documents; ++i) {
    for (uint64_t n = 2 + random() % static_cast<uint64_t>(max_length - 1); n > 0; --n) {
      text += std::to_string(random() % 259) + " ";
    }
    text += "\n";
  }
  return text;
}

}  // namespace uniattn::testing
