#include <thread>

#include "catch.h"
#include "storage/json.h"
#include "support/error.h"
#include "temporary_directory.h"
#include "tokenizer/bpe_tokenizer.h"
#include "tokenizer/pattern_dialect.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/tokenizer.h"

using namespace uniattn;
using namespace uniattn::testing;
using nlohmann::json;

namespace {

// Symbols of the bytes 0x21 to 0x7E as ids 0 to 93, of the space as 94, the bytes of "é" and "😀" behind, and merges.
json small_tokenizer() {
  json vocab = json::object();
  for (int byte = 0x21; byte < 0x7F; ++byte) vocab[std::string(1, static_cast<char>(byte))] = byte - 0x21;
  for (const char* symbol : {"Ġ", "Ã", "©", "ð", "Ł", "ĺ", "Ģ", "he", "ll", "hell", "Ġhell", "<|end|>"}) {
    vocab[symbol] = vocab.size();
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", {{{"id", vocab["<|end|>"]}, {"content", "<|end|>"}, {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"h e", "l l", {"he", "ll"}, {"Ġ", "hell"}}}}}};
}

std::unique_ptr<Tokenizer> load(const json& tokenizer) {
  return make_bpe_tokenizer(parse_tokenizer_json(tokenizer.dump(), "t.json"), {}, "t.json");
}

std::string refusal(const json& tokenizer) {
  return message_of<Error>([&] { load(tokenizer); });
}

// The small tokenizer with the value at a JSON pointer replaced.
json with(const std::string& place, const json& value) {
  json tokenizer = small_tokenizer();
  tokenizer[json::json_pointer(place)] = value;
  return tokenizer;
}

}  // namespace

TEST_CASE("byte-level BPE: merges by rank, words apart, and back", "[tokenizer]") {
  const auto tokenizer = load(small_tokenizer());
  const int32_t he = 101, ll = 102, hell = 103, space_hell = 104;
  const auto id = [](char c) { return c - 0x21; };
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->encode("hello") == std::vector<int32_t>{hell, id('o')});
  CHECK(tokenizer->encode("he hello") == std::vector<int32_t>{he, space_hell, id('o')});
  CHECK(tokenizer->encode("lll") == std::vector<int32_t>{ll, id('l')});
  CHECK(tokenizer->encode_continuation("hello") == tokenizer->encode("hello"));
  for (const std::string text : {"hello hell", "é😀", "<|end|>", "a'll b"})
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  CHECK(tokenizer->vocab_size() == 106);
  CHECK((tokenizer->bos_id() == -1 && tokenizer->eos_id() == -1));
}

TEST_CASE("byte-level BPE: a special token is named, never spelled", "[tokenizer]") {
  const auto tokenizer = load(small_tokenizer());
  REQUIRE(tokenizer->special_id("<|end|>") == 105);
  CHECK(tokenizer->special_id("he") == std::nullopt);
  for (const int32_t id : tokenizer->encode("a<|end|>")) CHECK(id != 105);
  CHECK(tokenizer->decode({0, 105, 1}) == "!\"");
  // Not even when the spelling is a word of its own that the vocabulary lists.
  json whole = with("/model/ignore_merges", true);
  whole["pre_tokenizer"] = {{"type", "Sequence"},
                            {"pretokenizers",
                             {{{"type", "Split"}, {"pattern", {{"Regex", "\\S+"}}}, {"behavior", "Isolated"}},
                              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  for (const int32_t id : load(whole)->encode("<|end|>")) CHECK(id != 105);
  CHECK(load(whole)->encode("hell") == std::vector<int32_t>{103});
}

TEST_CASE("byte-level BPE: cut characters and bad input", "[tokenizer]") {
  const auto tokenizer = load(small_tokenizer());
  const auto ids = tokenizer->encode("aé😀b");
  REQUIRE(ids.size() == 8);
  CHECK(tokenizer->decode({ids.begin(), ids.begin() + 2}) == "a\uFFFD");
  CHECK(tokenizer->decode({ids.begin() + 2, ids.end()}) == "\uFFFD😀b");
  CHECK(tokenizer->decode({ids.begin(), ids.begin() + 5}) == "aé\uFFFD");
  CHECK_THAT(message_of<Error>([&] { tokenizer->decode({106}); }), contains("106"));
  CHECK_THAT(message_of<Error>([&] { tokenizer->encode("ab\xff"); }), contains("byte 2"));
  CHECK_THAT(message_of<Error>([&] { tokenizer->encode("a\n"); }), contains("0x0a"));
}

TEST_CASE("stream decoder: whole characters, and in the end all of them", "[tokenizer]") {
  const auto tokenizer = load(small_tokenizer());
  StreamDecoder stream(*tokenizer);
  std::vector<std::string> parts;
  for (const int32_t id : tokenizer->encode("aé😀 hell")) parts.push_back(stream.push(id));
  CHECK(parts == std::vector<std::string>{"a", "", "é", "", "", "", "😀", " hell"});
  CHECK(stream.finish().empty());
  CHECK(stream.push(tokenizer->encode("😀")[0]).empty());
  CHECK(stream.finish() == "\uFFFD");
}

TEST_CASE("byte-level BPE: threads share a tokenizer", "[tokenizer]") {
  const auto tokenizer = load(small_tokenizer());
  const auto text = [](int n) { return "hello " + std::to_string(n) + " hell'll " + std::to_string(n * n); };
  std::vector<std::vector<int32_t>> ids(400);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int n = t; n < 400; n += 4) ids[static_cast<size_t>(n)] = tokenizer->encode(text(n));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int n = 0; n < 400; ++n) CHECK(tokenizer->decode(ids[static_cast<size_t>(n)]) == text(n));
}

TEST_CASE("tokenizer.json: what is not honoured is refused by name", "[tokenizer]") {
  CHECK(refusal(small_tokenizer()).empty());
  CHECK_THAT(refusal(with("/surprise", 1)), contains("t.json: surprise is not supported"));
  CHECK_THAT(refusal(with("/normalizer", {{"type", "NFC"}})), contains("normalizer") && contains("NFC"));
  CHECK_THAT(refusal(with("/pre_tokenizer/type", "Whitespace")), contains("pre_tokenizer.type: \"Whitespace\""));
  CHECK_THAT(refusal(with("/pre_tokenizer/add_prefix_space", true)),
             contains("pre_tokenizer.add_prefix_space is true"));
  CHECK_THAT(refusal(with("/post_processor", {{"type", "BertProcessing"}})), contains("BertProcessing"));
  CHECK_THAT(refusal(with("/decoder/type", "WordPiece")), contains("decoder.type: \"WordPiece\""));
  CHECK_THAT(refusal(with("/model/type", "Unigram")), contains("model.type is \"Unigram\""));
  CHECK_THAT(refusal(with("/model/dropout", 0.1)), contains("model.dropout is 0.1"));
  CHECK_THAT(refusal(with("/model/byte_fallback", true)), contains("byte_fallback"));
  CHECK_THAT(refusal(with("/model/end_of_word_suffix", "</w>")), contains("model.end_of_word_suffix"));
  CHECK_THAT(refusal(with("/added_tokens/0", {{"id", 1}, {"content", "x"}, {"lstrip", true}})), contains("lstrip"));
}

TEST_CASE("tokenizer.json: what is damaged is named", "[tokenizer]") {
  CHECK_THAT(refusal(with("/model/vocab/he", 0)), contains("\"he\"") && contains("another token has the id 0"));
  CHECK_THAT(refusal(with("/model/vocab/he", -1)), contains("\"he\"") && contains("-1"));
  CHECK_THAT(refusal(with("/model/vocab/he", 1 << 20)), contains("1048576"));
  CHECK_THAT(refusal(with("/model/vocab/日", 200)), contains("日") && contains("byte-level alphabet"));
  CHECK_THAT(refusal(with("/model/merges/0", "h x y")), contains("merges[0]") && contains("two tokens"));
  CHECK_THAT(refusal(with("/model/merges/0", "h z")), contains("merges[0]") && contains("'hz'"));
  CHECK_THAT(refusal(with("/model/merges", 3)), contains("model.merges: expected a list"));
  CHECK_THAT(refusal(with("/added_tokens/0/id", "x")), contains("added_tokens[0]"));
  CHECK_THAT(refusal(with("/added_tokens/0/id", 5)), contains("<|end|>") && contains("id 5"));
  const std::string text = small_tokenizer().dump();
  CHECK_THAT(message_of<Error>([&] { parse_tokenizer_json(text.substr(0, 100), "t.json"); }), contains("invalid JSON"));
}

TEST_CASE("tokenizer.json: the template names the BOS", "[tokenizer]") {
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json end = {{"SpecialToken", {{"id", "<|end|>"}, {"type_id", 0}}}};
  json post = {{"type", "TemplateProcessing"},
               {"single", {end, text}},
               {"pair", json::array()},
               {"special_tokens", {{"<|end|>", {{"id", "<|end|>"}, {"ids", {105}}, {"tokens", {"<|end|>"}}}}}}};
  CHECK(load(with("/post_processor", post))->bos_id() == 105);
  post["single"] = {text};
  CHECK(load(with("/post_processor", post))->bos_id() == -1);
  post["single"] = {text, end};
  CHECK_THAT(refusal(with("/post_processor", post)), contains("post_processor.single"));
}

TEST_CASE("tiktoken: what is damaged is named with its line", "[tokenizer]") {
  const auto refused = [](const std::string& text) {
    return message_of<Error>([&] { parse_tiktoken(text, {}, "t.model"); });
  };
  const BpeDefinition good = parse_tiktoken("YQ== 0\nYg== 1\n\nYWI= 2\n", {}, "t.model");
  CHECK(good.tokens == std::vector<std::string>{"a", "b", "ab"});
  REQUIRE(good.merges.size() == 1);
  CHECK((good.merges[0].left == 0 && good.merges[0].right == 1 && good.merges[0].result == 2));
  CHECK((good.added.size() == 256 && good.added.back().content == "<|reserved_special_token_247|>"));
  CHECK_THAT(refused("YQ== 0\nYg== x\n"), contains("t.model:2") && contains("Yg== x"));
  CHECK_THAT(refused("YQ== 0\nYg= 1\n"), contains("t.model:2"));
  CHECK_THAT(refused("YQ== 0\nY*== 1\n"), contains("t.model:2"));
  CHECK_THAT(refused("YQ== 0\nYg== 0\n"), contains("rank 0 appears twice"));
  CHECK_THAT(refused("YQ== 0\nYQ== 1\n"), contains("t.model:2") && contains("the token of rank 0"));
  CHECK_THAT(refused("YQ== 1048576\n"), contains("1048576"));
  CHECK_THAT(refused(""), contains("no token"));
}

TEST_CASE("tiktoken: special tokens come from tokenizer_config.json or from the published list", "[tokenizer]") {
  const TemporaryDirectory directory;
  write_bytes(directory / "tokenizer.model", "YQ== 0\nYg== 1\nYWI= 2\n");
  CHECK(load_tokenizer(directory.path())->bos_id() == 3);
  CHECK(load_tokenizer(directory.path())->special_id("<|eot_id|>") == 12);
  CHECK(load_tokenizer(directory.path())->encode("abab") == std::vector<int32_t>{2, 2});
  write_bytes(directory / "tokenizer_config.json", R"({"eos_token": {"content": "<e>"}, "added_tokens_decoder":
      {"7": {"content": "<b>", "special": true}, "8": {"content": "<e>", "special": true}}, "bos_token": "<b>"})");
  const auto named = load_tokenizer(directory.path());
  CHECK((named->bos_id() == 7 && named->eos_id() == 8 && named->vocab_size() == 9));
  write_bytes(directory / "tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<b>"}}})");
  CHECK_THAT(message_of<Error>([&] { load_tokenizer(directory.path()); }), contains("added_tokens_decoder[\"x\"]"));
}

TEST_CASE("split patterns: what PCRE2 would read differently is refused", "[tokenizer]") {
  CHECK(for_pcre2(R"( ?[^\r\n]+|\p{Lu}\+)") == R"( ?[^\r\n]+|\p{Lu}\+)");
  CHECK_THAT(for_pcre2(R"(\S[^\s])"), contains("[^\\t-\\r") && !contains("\\s"));
  for (const std::string pattern : {"^a", "a$", "\\h", "\\w", "[a[b]]", "[a&&b]", "[]a]", "[\\S]", "\\"}) {
    INFO(pattern);
    const auto refused = message_of<Error>([&] { for_pcre2(pattern); });
    CHECK((pattern == "\\" || !refused.empty()));
  }
  json tokenizer = small_tokenizer();
  const auto split = [](const char* regex) {
    return json{{"type", "Sequence"},
                {"pretokenizers",
                 {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}},
                  {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  };
  CHECK_THAT(refusal(with("/pre_tokenizer", split("(a"))), contains("'(a'") && contains("parenthesis"));
  // An empty match parts the text where it stands: "he" is not merged over it.
  CHECK(load(with("/pre_tokenizer", split("(?=e)")))->encode("hehe").size() == 3 + 1);
}
