// From records to the tokens and labels of a document.
#include <random>

#include "data/formats.h"
#include "data/records.h"
#include "data/show.h"
#include "data_workplace.h"
#include "support/error.h"

using namespace uniattn;
using namespace uniattn::testing;
using nlohmann::json;

TEST_CASE("records: lists and lines with their places", "[data]") {
  const TemporaryDirectory directory;
  const auto records = [&](const std::string& text) {
    write_bytes(directory / "f", text);
    const MappedFile file(directory / "f");
    std::vector<std::pair<std::string, int64_t>> found;
    RecordReader reader(file, RecordReader::Kind::json);
    while (const auto record = reader.next()) {
      CHECK(record->number == static_cast<int64_t>(found.size()) + 1);
      std::string element(record->text);
      element.erase(element.find_last_not_of(" \n") + 1);
      found.emplace_back(element, record->line);
      reader.release();
    }
    return found;
  };
  using Found = std::vector<std::pair<std::string, int64_t>>;
  CHECK(records("\n [1,\n\n {\"a\": \"],}\\\"\", \"b\": [1, 2]}\n, \"x\" ]\n") ==
        Found{{"1", 2}, {"{\"a\": \"],}\\\"\", \"b\": [1, 2]}", 4}, {"\"x\"", 5}});
  CHECK(records("[]") == Found{});
  CHECK(records("\xef\xbb\xbf[ \n ]") == Found{});
  CHECK(records("{}\r\n\n  \n3") == Found{{"{}", 1}, {"3", 4}});
  CHECK(records("") == Found{});

  const auto refused = [&](const std::string& text) { return message_of<Error>([&] { records(text); }); };
  CHECK_THAT(refused("[1,\n2"), contains("f:2") && contains("not closed"));
  CHECK_THAT(refused("[\n\"a\n\"]"), contains("f:2") && contains("string"));
  CHECK_THAT(refused("[1]\n[2]"), contains("f:1") && contains("follows"));
  CHECK_THAT(refused("[1}"), contains("expected ']'"));
}

TEST_CASE("formats: the prompts of Alpaca", "[data]") {
  const auto pieces = [](const json& record) { return *render_record("alpaca", "alpaca", record); };
  const auto both = pieces({{"instruction", "Add."}, {"input", "1 2"}, {"output", "3"}});
  REQUIRE(both.size() == 3);
  CHECK(both[0].text ==
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### "
        "Response:");
  CHECK((both[1].text == "3" && both[1].supervised && !both[0].supervised));
  CHECK((both[2].kind == Piece::Kind::eos && both[2].supervised));
  CHECK(pieces({{"instruction", "Go."}, {"input", nullptr}, {"output", "ok"}})[0].text ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nGo.\n\n### Response:");
  CHECK(pieces({{"input", "x"}, {"output", "y"}})[0].text == "### Input:\nx\n\n### Response:");
  CHECK_FALSE(pieces({{"input", "x"}, {"output", " \n\u00a0"}}).back().supervised);
}

TEST_CASE("formats: an instruction under a chat template is one message", "[data]") {
  const json record = {{"instruction", "Add."}, {"input", "1 2"}, {"output", "3"}};
  const auto pieces = *render_record("alpaca", "tulu", record);
  CHECK(pieces[0].text == "<|user|>\nAdd.\n\n1 2\n<|assistant|>\n");
}

TEST_CASE("formats: conversations", "[data]") {
  const json record = json::parse(R"({"messages": [
    {"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "value": "U"}]},
    {"role": "assistant", "content": "A"}, {"role": "user", "content": [{"type": "text", "text": "V"}]},
    {"role": "assistant", "content": "B"}, {"role": "user", "content": "unanswered"}]})");
  const auto document = tokenize_pieces(*render_record("messages", "tulu", record), ByteTokenizer());
  CHECK(all_text(document.view()) == "<|system|>\nS\n<|user|>\nU\n<|assistant|>\nA\n<|user|>\nV\n<|assistant|>\nB");
  CHECK(learnt(document.view()) == "A$B$");
  CHECK(document.tokens.front() == 1);
  CHECK(std::count(document.tokens.begin(), document.tokens.end(), 1) == 1);
}

TEST_CASE("formats: the single rounds of Tulu-3", "[data]") {
  const auto chosen = [](const char* messages) {
    return render_record("tulu_single_round", "alpaca", {{"messages", json::parse(messages)}});
  };
  const auto kept = chosen(R"([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])");
  REQUIRE(kept);
  CHECK((*kept == std::vector<Piece>{{Piece::Kind::text, "### Input:\nq\n\n### Response:"},
                                     {Piece::Kind::text, "a", true},
                                     {Piece::Kind::eos, "", true}}));
  CHECK_FALSE(chosen(R"([{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}])"));
  CHECK_FALSE(chosen(R"([{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                         {"role": "assistant", "content": "a"}])"));
}

TEST_CASE("tokenize: the prompt's ids do not depend on the answer", "[data]") {
  const ByteTokenizer tokenizer;
  const auto document =
      tokenize_pieces(std::vector<Piece>{{.text = "ask"}, {.text = "reply", .supervised = true}}, tokenizer);
  std::vector<int32_t> prompt = tokenizer.encode("ask");
  prompt.insert(prompt.begin(), 1);
  CHECK(std::equal(prompt.begin(), prompt.end(), document.tokens.begin()));
  CHECK(all_text(document.view()) == "askreply");
  CHECK(learnt(document.view()) == "reply");
  const auto without_bos = tokenize_pieces(std::vector<Piece>{{.text = "text", .supervised = true}}, ByteTokenizer(-1));
  CHECK(without_bos.tokens.size() == 5);  // " text"
  CHECK(learnt(without_bos.view()) == "text");
}

// Merges "ab" wherever it stands.
class MergingTokenizer : public ByteTokenizer {
 public:
  std::vector<int32_t> encode_continuation(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool merges = text.substr(i).starts_with("ab");
      ids.push_back(merges ? 300 : static_cast<uint8_t>(text[i]) + 3);
      i += merges ? 1 : 0;
    }
    return ids;
  }
  std::string_view token_bytes(int32_t id) const override { return id == 300 ? "ab" : ByteTokenizer::token_bytes(id); }
};

TEST_CASE("tokenize: texts are encoded as one, but no token reaches into the answer", "[data]") {
  const auto ids = [](const char* prompt, const char* answer) {
    const std::vector<Piece> pieces = {{.text = prompt}, {.text = answer, .supervised = true}};
    const auto document = tokenize_pieces(pieces, MergingTokenizer());
    CHECK(std::count(document.supervised.begin(), document.supervised.end(), 1) ==
          static_cast<int64_t>(MergingTokenizer().encode_continuation(answer).size()));
    return document.tokens;
  };
  CHECK(ids("x", "ab") == std::vector<int32_t>{1, ' ' + 3, 'x' + 3, 300});
  CHECK(ids("a", "b") == std::vector<int32_t>{1, ' ' + 3, 'a' + 3, 'b' + 3});
}

TEST_CASE("fit_length: every policy, over random documents", "[data]") {
  std::mt19937_64 random(5);
  for (int round = 0; round < 500; ++round) {
    TokenizedDocument document;
    for (uint64_t n = 1 + random() % 30; n > 0; --n) {
      document.push(static_cast<int32_t>(3 + random() % 200), random() % 3 == 0);
    }
    document.terminator = 2;
    const auto limit = static_cast<int64_t>(2 + random() % 20);
    const auto size = static_cast<int64_t>(document.tokens.size());
    const auto labels = [](const TokenizedDocument& part) {
      return std::count(part.supervised.begin(), part.supervised.end(), 1);
    };

    const auto cut = fit_length(document, limit, "truncate");
    for (const auto& part : cut.parts) {
      const auto length = static_cast<int64_t>(part.tokens.size());
      CHECK(length == std::min(size, limit));
      CHECK(labels(part) > 0);
      const auto same = length - (size > limit ? 1 : 0);
      CHECK(std::equal(part.tokens.begin(), part.tokens.begin() + same, document.tokens.begin()));
      if (size > limit) {
        CHECK(part.tokens.back() == 2);
        CHECK(part.supervised.back() == document.supervised[static_cast<size_t>(limit) - 2]);
      }
    }
    if (cut.parts.empty()) CHECK(cut.fit == Fit::kWithoutLabels);

    std::vector<int32_t> learnt_by_windows, expected;
    for (const auto& part : fit_length(document, limit, "split").parts) {
      CHECK(static_cast<int64_t>(part.tokens.size()) <= limit);
      CHECK(part.supervised[0] == 0);
      for (size_t t = 0; t < part.tokens.size(); ++t) {
        if (part.supervised[t]) learnt_by_windows.push_back(part.tokens[t]);
      }
    }
    for (int64_t t = 0; t < size; ++t) {
      if (t % limit != 0 && document.supervised[static_cast<size_t>(t)]) {
        expected.push_back(document.tokens[static_cast<size_t>(t)]);
      }
    }
    CHECK(learnt_by_windows == expected);

    const auto dropped = fit_length(document, limit, "drop");
    if (size > limit) CHECK(dropped.fit == Fit::kTooLong);
    const auto strict = [&] { fit_length(document, limit, "error"); };
    if (size > limit) CHECK_THROWS_WITH(strict(), contains("max_length " + std::to_string(limit)));
    if (size <= limit) CHECK_NOTHROW(strict());
  }
}

TEST_CASE("show: labels stand out", "[data]") {
  const ByteTokenizer tokenizer;
  const auto document = tokenize_pieces(
      std::vector<Piece>{{.text = "ask:"}, {.text = " yes", .supervised = true}, {Piece::Kind::eos, "", true}},
      tokenizer);
  CHECK(render_sample(document.view(), tokenizer, false) == "<BOS>ask:[[ yes<EOS>]]");
  CHECK(render_sample(document.view(), tokenizer, true) == "\033[2m<BOS>ask:\033[0m\033[32m yes<EOS>\033[0m");
}
