#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "catch.h"
#include "support/error.h"
#include "temporary_directory.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

// Tokenizer models to test with: one trained here, and the real ones where UNIATTN_MATERIAL says they are.
std::string trained_model() {
  static const TemporaryDirectory directory;
  const std::string model = directory / "small.model";
  if (std::filesystem::exists(model)) return model;
  std::ofstream text(directory / "text.txt");
  for (int i = 0; i < 200; ++i)
    text << "Once upon a time, dog number " << i * i << " met the cat and said: response!\n";
  text.close();
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--model_type=bpe --vocab_size=320 --byte_fallback=true --remove_extra_whitespaces=false --minloglevel=2 "
      "--normalization_rule_name=identity --hard_vocab_limit=false --input=" +
      (directory / "text.txt") + " --model_prefix=" + (directory / "small"));
  REQUIRE(status.ok());
  return model;
}

// A SentencePiece model in which the library matches <turn> and <table> inside text.
std::string model_with_user_defined_pieces() {
  static const TemporaryDirectory directory;
  std::ofstream(directory / "text.txt") << "a turn at the table, and another turn\n";
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--model_type=bpe --vocab_size=300 --byte_fallback=true --remove_extra_whitespaces=false --minloglevel=2 "
      "--normalization_rule_name=identity --hard_vocab_limit=false --user_defined_symbols=<turn>,<table> --input=" +
      (directory / "text.txt") + " --model_prefix=" + (directory / "user"));
  REQUIRE(status.ok());
  return directory / "user.model";
}

std::string material() {
  const char* root = std::getenv("UNIATTN_MATERIAL");
  if (root == nullptr) WARN("the published tokenizers are skipped: UNIATTN_MATERIAL is not set");
  return root == nullptr ? "" : root;
}

std::vector<std::string> models() {
  std::vector<std::string> models = {trained_model()};
  const std::string root = material();
  for (const auto* name : {"llama2/tokenizer.model", "mistral-v0.1/tokenizer.model", "stories512/tok512.model"}) {
    if (!root.empty()) models.push_back(root + "/tokenizers/" + name);
  }
  return models;
}

// A model directory around one of the material's tokenizers.
struct ModelDirectory {
  ModelDirectory(const std::string& tokenizer_model, const std::string& config) {
    std::filesystem::copy_file(tokenizer_model, directory / "tokenizer.model");
    if (!config.empty()) write_bytes(directory / "config.json", config);
  }
  std::unique_ptr<Tokenizer> load() const { return load_tokenizer(directory.path()); }
  TemporaryDirectory directory;
};

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + separator.size()) {
    parts.push_back(text.substr(begin, end - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("utf-8: the first bad byte is found", "[tokenizer]") {
  CHECK(!find_invalid_utf8(""));
  CHECK(!find_invalid_utf8("a\0b"));
  CHECK(!find_invalid_utf8("\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"));
  for (const auto* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe1\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf1\x80\x80", "\xff", "\xc3("}) {
    CHECK(find_invalid_utf8(std::string("né") + bad + "x") == 3u);
  }
}

TEST_CASE("tokenizer: the published vectors of Llama-2", "[tokenizer]") {
  const std::string root = material();
  if (root.empty()) return;
  const auto tokenizer = ModelDirectory(root + "/tokenizers/llama2/tokenizer.model", "").load();
  const auto texts = split(read_bytes(root + "/tokenizers/vectors/llama2.txt.inp"), "\n__ggml_vocab_test__\n");
  const auto lines = split(read_bytes(root + "/tokenizers/vectors/llama2.txt.out"), "\n");
  REQUIRE(texts.size() >= 46);
  REQUIRE(lines.size() >= texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<int32_t> expected;
    std::istringstream line(lines[i]);
    for (int32_t id; line >> id;) expected.push_back(id);
    INFO(texts[i]);
    CHECK(tokenizer->encode(texts[i]) == expected);
  }
}

TEST_CASE("tokenizer: a continuation joins without a stray space", "[tokenizer]") {
  const auto model = GENERATE(from_range(models()));
  const auto tokenizer = ModelDirectory(model, "").load();
  const std::vector<std::string> pieces = {"Once", "the", "\n", "dog.", "ß", "日本", "😀", "### Response:", "7"};
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string a = "x", b;
    for (int n = static_cast<int>(random() % 6); n > 0; --n) a += pieces[random() % pieces.size()];
    for (int n = static_cast<int>(random() % 6); n > 0; --n) b += pieces[random() % pieces.size()];
    INFO(a << "|" << b);
    CHECK(tokenizer->decode(joined(tokenizer->encode(a), tokenizer->encode_continuation(b))) == a + b);
  }
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->encode_continuation("").empty());
}

TEST_CASE("tokenizer: spelled control pieces are data", "[tokenizer]") {
  const auto model = GENERATE(from_range(models()));
  const auto tokenizer = ModelDirectory(model, "").load();
  for (const std::string text :
       {"<s>", "</s>", "<unk>", " <s> </s>", "a</s>b", "<s></s><unk><s>", "<0x00>", "<0x0A>"}) {
    INFO(text);
    auto ids = tokenizer->encode(text);
    ids = joined(ids, tokenizer->encode_continuation(text));
    for (const int32_t id : ids) CHECK(id >= 3);
    if (text.front() == '<') CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

TEST_CASE("tokenizer: a user-defined piece matches text unless it is a special token", "[tokenizer]") {
  const std::string model = model_with_user_defined_pieces();
  const int32_t turn = 3, table = 4;
  const std::vector<std::string> settings = {
      R"({"added_tokens_decoder": {"3": {"content": "<turn>", "special": true}, "4": {"content": "<table>"}}})",
      R"({"additional_special_tokens": ["<turn>"]})",
      R"({"added_tokens": [{"id": 3, "content": "<turn>", "special": true}, {"id": 4, "content": "<table>"}]})", "{}"};
  for (size_t i = 0; i < settings.size(); ++i) {
    const ModelDirectory directory(model, "");
    write_bytes(directory.directory / (i == 2 ? "tokenizer.json" : "tokenizer_config.json"), settings[i]);
    const auto tokenizer = directory.load();
    const bool special = i < 3;
    const auto ids = tokenizer->encode("a <turn> at the<table>");
    INFO(settings[i]);
    CHECK(std::count(ids.begin(), ids.end(), turn) == (special ? 0 : 1));
    CHECK(std::count(ids.begin(), ids.end(), table) == 1);
    CHECK(tokenizer->decode(ids) == "a <turn> at the<table>");
    CHECK(tokenizer->special_id("<turn>") == (special ? std::optional(turn) : std::nullopt));
    CHECK(tokenizer->special_id("</s>") == 2);
    CHECK(tokenizer->decode({turn}) == (special ? "" : "<turn>"));
  }
}

TEST_CASE("tokenizer: added tokens of a SentencePiece model", "[tokenizer]") {
  const ModelDirectory directory(model_with_user_defined_pieces(), R"({"vocab_size": 400})");
  const auto load_with = [&](const std::string& entry) {
    write_bytes(directory.directory / "tokenizer_config.json", R"({"added_tokens_decoder": {)" + entry + "}}");
    return directory.load();
  };
  const auto tokenizer = load_with(R"("399": {"content": "[PAD]", "special": true})");
  CHECK(tokenizer->special_id("[PAD]") == 399);
  CHECK(tokenizer->decode({399}).empty());
  // Beyond the embeddings: no model can have been trained on it.
  CHECK(load_with(R"("400": {"content": "[PAD]", "special": true})")->special_id("[PAD]") == std::nullopt);
  CHECK_THAT(message_of<Error>([&] { load_with(R"("399": {"content": "word"})"); }), contains("'word'"));
  CHECK_THAT(message_of<Error>([&] { load_with(R"("5": {"content": "<turn>"})"); }), contains("piece 3"));
  write_bytes(directory.directory / "tokenizer_config.json", R"({"add_prefix_space": false})");
  const auto bare = directory.load();
  CHECK(bare->encode("turn") == bare->encode_continuation("turn"));
}

TEST_CASE("tokenizer: bos, eos and the vocabulary's size", "[tokenizer]") {
  const std::string path = trained_model();
  const auto plain = ModelDirectory(path, "").load();
  const int64_t pieces = plain->vocab_size();
  REQUIRE((pieces > 259 && pieces < 600));
  CHECK((plain->bos_id() == 1 && plain->eos_id() == 2));
  const auto configured =
      ModelDirectory(path, R"({"bos_token_id": 3, "eos_token_id": [5, 6], "vocab_size": 600})").load();
  CHECK((configured->bos_id() == 3 && configured->eos_id() == 5 && configured->vocab_size() == 600));
  const auto null = ModelDirectory(path, R"({"bos_token_id": null})").load();
  CHECK(null->bos_id() == 1);
  CHECK_NOTHROW(configured->decode({599}));

  const auto refused = [&](const std::string& config) {
    return message_of<Error>([&] { ModelDirectory(path, config).load(); });
  };
  CHECK_THAT(refused(R"({"vocab_size": 259})"), contains(std::to_string(pieces) + " pieces") && contains("259"));
  CHECK_THAT(refused(R"({"eos_token_id": "</s>"})"), contains("eos_token_id") && contains("config.json"));
  CHECK_THAT(refused(R"({"eos_token_id": 600})"), contains("600"));
  CHECK_THAT(refused(R"({"bos_token_id": -2})"), contains("bos_token_id"));
  CHECK_THAT(refused("[]"), contains("JSON object"));
  CHECK_THAT(refused("{"), contains("invalid JSON"));
}

TEST_CASE("tokenizer: bad text and bad ids are refused", "[tokenizer]") {
  const auto tokenizer = ModelDirectory(trained_model(), "").load();
  CHECK_THAT(message_of<Error>([&] { tokenizer->encode("ab\xff"); }), contains("byte 2"));
  CHECK_THAT(message_of<Error>([&] { tokenizer->decode({32000}); }), contains("32000"));
  CHECK_THAT(message_of<Error>([&] { tokenizer->decode({-1}); }), contains("-1"));
  const auto hello = tokenizer->encode("Hello");
  CHECK(tokenizer->decode(joined(joined({1}, hello), {2})) == "Hello");
  CHECK(tokenizer->decode(tokenizer->encode(std::string("a\0b", 3))) == std::string("a\0b", 3));
}

TEST_CASE("tokenizer: a directory without a tokenizer is refused", "[tokenizer]") {
  const TemporaryDirectory directory;
  const auto refused = [&] { return message_of<Error>([&] { load_tokenizer(directory.path()); }); };
  CHECK_THAT(refused(), contains(directory.path()) && contains("tokenizer.model"));
  write_bytes(directory / "tokenizer.json", "{}");
  CHECK_THAT(refused(), contains("tokenizer.json: expected an object as model"));
  write_bytes(directory / "tokenizer.model", "not a model");
  CHECK_THAT(refused(), contains("not a SentencePiece model"));
  write_bytes(directory / "tokenizer.model", "");
  CHECK_THAT(refused(), contains("not a SentencePiece model"));
  write_bytes(directory / "tokenizer.model", read_bytes(trained_model()).substr(0, 4000));
  CHECK_THAT(refused(), contains("tokenizer.model") && contains("not a SentencePiece model"));
  CHECK_THAT(message_of<Error>([&] { load_tokenizer(directory / "nowhere"); }), contains("nowhere"));
}
