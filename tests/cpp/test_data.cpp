#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "catch.h"
#include "data/loader.h"
#include "data/packing.h"
#include "data/prepare.h"
#include "data/random.h"
#include "data/records.h"
#include "data/shard_writer.h"
#include "data/show.h"
#include "data/templates.h"
#include "data/tokenize.h"
#include "storage/json.h"
#include "support/error.h"
#include "temporary_directory.h"

using namespace uniattn;
using namespace uniattn::testing;
using Catch::Matchers::Contains;
using nlohmann::json;

namespace {

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
  int64_t vocab_size() const override { return 259; }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return 2; }

 private:
  int32_t bos_;
};

// The text that carries loss; EOS shows as '$'.
std::string learnt(const Document& document) {
  std::string text;
  for (size_t t = 0; t < document.tokens.size(); ++t) {
    if (document.supervised[t]) text += document.tokens[t] == 2 ? '$' : static_cast<char>(document.tokens[t] - 3);
  }
  return text;
}

std::string all_text(const Document& document) {
  return ByteTokenizer().decode({document.tokens.begin(), document.tokens.end()});
}

struct Workplace {
  TemporaryDirectory directory;
  ByteTokenizer tokenizer;
  PrepareOptions options{.max_length = 4096};

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

std::string ids_lines(int documents, uint64_t seed, int max_length) {
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

using Rows = std::vector<std::vector<Document>>;

std::set<const int32_t*> identities(const Rows& rows) {
  std::set<const int32_t*> ids;
  for (const auto& row : rows) {
    for (const Document& document : row) ids.insert(document.tokens.data());
  }
  return ids;
}

}  // namespace

TEST_CASE("random: specified numbers and even choices", "[data]") {
  Random random({42, 7});
  std::vector<int> counts(5);
  for (int i = 0; i < 5000; ++i) ++counts[random.below(5)];
  for (const int count : counts) CHECK((count > 850 && count < 1150));
  std::vector<int> a(50), b(50);
  std::iota(a.begin(), a.end(), 0);
  b = a;
  Random({1, 2}).shuffle(a);
  Random({1, 3}).shuffle(b);
  CHECK(a != b);
  CHECK(std::is_permutation(a.begin(), a.end(), b.begin()));
  std::vector<int> few = {0, 1, 2, 3, 4, 5, 6, 7};
  Random({1}).shuffle(few);
  std::vector<int> again = {0, 1, 2, 3, 4, 5, 6, 7};
  Random({1}).shuffle(again);
  CHECK(few == again);
}

TEST_CASE("records: lists and lines with their places", "[data]") {
  const TemporaryDirectory directory;
  const auto records = [&](const std::string& text) {
    write_bytes(directory / "f", text);
    const MappedFile file(directory / "f");
    std::vector<std::pair<std::string, int64_t>> found;
    for (const Record& record : json_records(file)) {
      CHECK(record.number == static_cast<int64_t>(found.size()) + 1);
      std::string element(record.text);
      element.erase(element.find_last_not_of(" \n") + 1);
      found.emplace_back(element, record.line);
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
  CHECK_THAT(refused("[1,\n2"), Contains("f:2") && Contains("not closed"));
  CHECK_THAT(refused("[\n\"a\n\"]"), Contains("f:2") && Contains("string"));
  CHECK_THAT(refused("[1]\n[2]"), Contains("f:1") && Contains("follows"));
  CHECK_THAT(refused("[1}"), Contains("expected ']'"));
}

TEST_CASE("templates: the prompts of Alpaca", "[data]") {
  const auto both = render("alpaca", {{"instruction", "Add."}, {"input", "1 2"}, {"output", "3"}});
  REQUIRE(both.size() == 2);
  CHECK(both[0].text ==
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### "
        "Response:");
  CHECK((both[1].text == "3" && both[1].supervised && !both[0].supervised));
  CHECK(render("alpaca", {{"instruction", "Go."}, {"input", nullptr}, {"output", "ok"}})[0].text ==
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nGo.\n\n### Response:");
  CHECK(render("alpaca", {{"input", "x"}, {"output", "y"}})[0].text == "### Input:\nx\n\n### Response:");
}

TEST_CASE("templates: conversations", "[data]") {
  const json record = json::parse(R"({"messages": [
    {"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "value": "U"}]},
    {"role": "assistant", "content": "A"}, {"role": "user", "content": [{"type": "text", "text": "V"}]},
    {"role": "assistant", "content": "B"}, {"role": "user", "content": "unanswered"}]})");
  const auto document = tokenize_spans(render("messages", record), ByteTokenizer());
  CHECK(all_text(document.view()) == "<|system|>\nS\n<|user|>\nU\n<|assistant|>\nA\n<|user|>\nV\n<|assistant|>\nB");
  CHECK(learnt(document.view()) == "A$B$");
  CHECK(document.tokens.front() == 1);
  CHECK(std::count(document.tokens.begin(), document.tokens.end(), 1) == 1);
}

TEST_CASE("tokenize: the prompt's ids do not depend on the answer", "[data]") {
  const ByteTokenizer tokenizer;
  const auto document = tokenize_spans({{"ask", false}, {"reply", true}}, tokenizer);
  std::vector<int32_t> prompt = tokenizer.encode("ask");
  prompt.insert(prompt.begin(), 1);
  CHECK(std::equal(prompt.begin(), prompt.end(), document.tokens.begin()));
  CHECK(all_text(document.view()) == "askreply");
  CHECK(learnt(document.view()) == "reply$");
  const auto without_bos = tokenize_spans({{"text", true}}, ByteTokenizer(-1));
  CHECK(without_bos.tokens.size() == 6);  // " text" and EOS
  CHECK(learnt(without_bos.view()) == "text$");
}

TEST_CASE("fit_length: every policy, over random documents", "[data]") {
  std::mt19937_64 random(5);
  for (int round = 0; round < 500; ++round) {
    TokenizedDocument document;
    for (uint64_t n = 1 + random() % 30; n > 0; --n) {
      document.push(static_cast<int32_t>(3 + random() % 200), random() % 3 == 0);
    }
    const auto limit = static_cast<int64_t>(2 + random() % 20);
    const auto size = static_cast<int64_t>(document.tokens.size());
    const auto labels = [](const TokenizedDocument& part) {
      return std::count(part.supervised.begin(), part.supervised.end(), 1);
    };

    const auto cut = fit_length(document, limit, "truncate", 2);
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
    for (const auto& part : fit_length(document, limit, "split", {}).parts) {
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

    const auto dropped = fit_length(document, limit, "drop", 2);
    if (size > limit) CHECK(dropped.fit == Fit::kTooLong);
    const auto strict = [&] { fit_length(document, limit, "error", 2); };
    if (size > limit) CHECK_THROWS_WITH(strict(), Contains("max_length " + std::to_string(limit)));
    if (size <= limit) CHECK_NOTHROW(strict());
  }
}

TEST_CASE("prepare: every format becomes documents with exact labels", "[data]") {
  Workplace work;
  const std::string list = R"([{"instruction": "I", "input": "", "output": "one"},
                               {"input": "J", "output": "two", "extra": 3}])";
  const auto alpaca = work.prepare("a.json", "alpaca", list);
  REQUIRE(alpaca.size() == 2);
  CHECK(learnt(alpaca.document(0)) == "one$");
  CHECK(learnt(alpaca.document(1)) == "two$");
  CHECK(all_text(alpaca.document(1)) == "### Input:\nJ\n\n### Response:two");

  const auto messages =
      work.prepare("m.jsonl", "messages",
                   R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]})"
                   "\n"
                   R"({"messages": [{"role": "user", "content": "nobody answers"}]})");
  CHECK(messages.size() == 1);
  CHECK(messages.counts().read == 2);
  CHECK(messages.counts().dropped_without_labels == 1);
  CHECK(learnt(messages.document(0)) == "r$");

  const auto lines = work.prepare("t.jsonl", "text", "\"first\"\n{\"text\": \"second\"}\n");
  REQUIRE(lines.size() == 2);
  CHECK(learnt(lines.document(1)) == " second$");
  CHECK(lines.document(1).tokens[0] == 1);

  const auto whole = work.prepare("t.txt", "text", "one\n\ntwo\n");
  REQUIRE(whole.size() == 1);
  CHECK(learnt(whole.document(0)) == " one\n\ntwo\n$");

  const auto ids = work.prepare("i.txt", "ids", "5 6\t7 \r\n\n8 258\n9\n");
  REQUIRE(ids.size() == 2);
  CHECK(std::vector<int32_t>(ids.document(0).tokens.begin(), ids.document(0).tokens.end()) ==
        std::vector<int32_t>{5, 6, 7});
  CHECK(ids.document(0).supervised[0] == 0);
  CHECK((ids.counts().read == 3 && ids.counts().dropped_without_labels == 1));
  CHECK((ids.tokens() == 5 && ids.supervised() == 3));
}

TEST_CASE("prepare: bad data is refused with its place", "[data]") {
  Workplace work;
  CHECK_THAT(work.refusal("a.jsonl", "alpaca", "{\"input\":\"x\",\"output\":\"y\"}\n{\"input\": }\n"),
             Contains("a.jsonl:2") && Contains("invalid JSON at byte"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\"output\":\"y\"},\n\n{\"input\" 3}]"),
             Contains("a.json:3, record 2") && Contains("invalid JSON"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\"output\":\"y\"},]"), Contains("record 2"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\n\"output\":7}]"),
             Contains("a.json:1, record 1") && Contains("\"output\": expected a string, got number"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\"}]"), Contains("\"output\" is missing"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"output\":\"x\"}]"), Contains("both missing"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[\"x\"]"), Contains("expected an object"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[]"), Contains("no document"));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[]}]"), Contains("\"messages\""));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[{\"role\":\"tool\",\"content\":\"\"}]}]"),
             Contains("\"tool\""));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[{\"role\":\"user\"}]}]"), Contains("\"content\""));
  CHECK_THAT(
      work.refusal("m.json", "messages", R"([{"messages":[{"role":"user","content":[{"type":"image","text":"x"}]}]}])"),
      Contains("\"image\""));
  CHECK_THAT(work.refusal("t.jsonl", "text", "\"a\"\n17\n"), Contains("t.jsonl:2") && Contains("got number"));
  CHECK_THAT(work.refusal("i", "ids", "1 2\n3 259\n"), Contains("i:2") && Contains("259"));
  CHECK_THAT(work.refusal("i", "ids", "1 2\n3 -1\n"), Contains("i:2") && Contains("-1"));
  CHECK_THAT(work.refusal("i", "ids", "1 two\n"), Contains("'two'"));
  CHECK_THAT(work.refusal("i", "ids", "1 99999999999999999999\n"), Contains("999"));
  CHECK_THAT(work.refusal("i", "ids", "4\n5\n"), Contains("none of the 2 documents"));
  CHECK_THAT(message_of<Error>([&] { work.prepare({{.path = work.directory / "none", .format = "ids"}}); }),
             Contains("No such file"));
  work.options.over_long = "error";
  work.options.max_length = 3;
  CHECK_THAT(work.refusal("i", "ids", "1 2\n1 2 3 4\n"), Contains("i:2, record 2") && Contains("4 tokens"));

  CHECK_THROWS_AS(work.prepare("i", "csv", "1"), UsageError);
  work.options.over_long = "cut";
  CHECK_THROWS_AS(work.prepare("i", "ids", "1 2"), UsageError);
  work.options.over_long = "split";
  CHECK_THROWS_AS(work.prepare("a.json", "alpaca", R"([{"input":"x","output":"y"}])"), UsageError);
  work.options = {.max_length = 1};
  CHECK_THROWS_AS(work.prepare("i", "ids", "1 2"), UsageError);
  CHECK_THROWS_AS(work.prepare(std::vector<DataSource>{}), UsageError);
}

TEST_CASE("prepare: over-long documents by policy, every one counted", "[data]") {
  Workplace work;
  work.options.max_length = 6;
  const std::string lines = "1 2 3\n1 2 3 4 5 6 7 8 9 10 11 12 13\n";
  const auto prepared = [&](const std::string& policy) {
    work.options.over_long = policy;
    const auto shards = work.prepare("i", "ids", lines);
    const PrepareCounts& counts = shards.counts();
    CHECK(counts.read == counts.kept + counts.dropped_over_long + counts.dropped_without_labels);
    return shards;
  };
  const auto truncated = prepared("truncate");
  CHECK((truncated.counts().truncated == 1 && truncated.size() == 2));
  CHECK(truncated.document(1).tokens.back() == 6);
  CHECK(prepared("drop").counts().dropped_over_long == 1);
  const auto split = prepared("split");
  CHECK((split.counts().split == 1 && split.counts().kept == 2 && split.size() == 3));  // a window of one token is none
  CHECK(split.document(2).tokens[0] == 7);

  work.options.over_long = "truncate";
  const auto text = work.prepare("t.txt", "text", "abcdefgh");
  CHECK(learnt(text.document(0)) == " abc$");
  CHECK_THAT(work.refusal("a.json", "alpaca", R"([{"input":"long prompt","output":"y"}])"), Contains("none of the 1"));
}

TEST_CASE("prepare: a second call does nothing, other inputs prepare anew", "[data]") {
  Workplace work;
  const auto source = work.source("i", "ids", ids_lines(50, 1, 9));
  const std::string hash = work.prepare({source}).hash();
  const std::string manifest = work.directory / ("prepared/" + hash + "/prepared.json");
  const auto written = std::filesystem::last_write_time(manifest);
  CHECK(work.prepare({source}).hash() == hash);
  CHECK(std::filesystem::last_write_time(manifest) == written);

  work.options.max_length = 5;
  CHECK(work.prepare({source}).hash() != hash);
  work.options.max_length = 4096;
  auto weighted = source;
  weighted.weight = 2;
  CHECK(work.prepare({weighted}).hash() != hash);
  CHECK(work.prepare("i", "ids", ids_lines(50, 2, 9)).hash() != hash);
  write_bytes(work.directory / "tokenizer.model", "another");
  CHECK(work.prepare("i", "ids", ids_lines(50, 1, 9)).hash() != hash);
}

TEST_CASE("prepare: samples are chosen over all sets by the seed", "[data]") {
  Workplace work;
  const std::vector<DataSource> sources = {work.source("a", "ids", ids_lines(40, 1, 5)),
                                           work.source("b", "ids", ids_lines(40, 2, 5))};
  const auto first_ids = [&](int64_t seed) {
    work.options.samples = 20;
    work.options.seed = seed;
    const auto shards = work.prepare(sources);
    REQUIRE(shards.size() == 20);
    int64_t from_b = 0;
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < 20; ++i) {
      from_b += shards.source(i);
      ids.push_back(shards.document(i).tokens[0]);
    }
    CHECK((from_b > 2 && from_b < 18));
    return ids;
  };
  CHECK(first_ids(1) == first_ids(1));
  CHECK(first_ids(1) != first_ids(2));
  work.options.samples = 1000;
  CHECK(work.prepare(sources).size() == 80);
}

TEST_CASE("shards: what goes in comes out, over several files", "[data]") {
  Workplace work;
  const std::string lines = ids_lines(300, 3, 20);
  write_bytes(work.directory / "i", lines);
  const MappedFile file(work.directory / "i");
  ShardWriter writer(work.directory.path(), 64);
  std::vector<TokenizedDocument> documents;
  for (const Record& record : line_records(file)) {
    documents.push_back(read_ids(record.text, 259));
    writer.add(documents.back().view(), static_cast<int32_t>(documents.size() % 2));
  }
  Manifest manifest{.hash = "h", .counts = {}, .sources = {{"a", 1.0}, {"b", 2.5}}, .shards = writer.finish()};
  CHECK(manifest.shards.size() > 20);
  write_bytes(work.directory / kManifestFile, json(manifest).dump());

  const TokenShards shards(work.directory.path());
  REQUIRE(shards.size() == 300);
  for (int64_t i = 0; i < 300; ++i) {
    const Document document = shards.document(i);
    const TokenizedDocument& expected = documents[static_cast<size_t>(i)];
    CHECK(std::equal(document.tokens.begin(), document.tokens.end(), expected.tokens.begin(), expected.tokens.end()));
    CHECK(std::equal(document.supervised.begin(), document.supervised.end(), expected.supervised.begin(),
                     expected.supervised.end()));
    CHECK(shards.weight(i) == ((i + 1) % 2 == 0 ? 1.0 : 2.5));
  }
}

TEST_CASE("shards: torn and altered files are named and refused", "[data]") {
  Workplace work;
  const auto source = work.source("i", "ids", ids_lines(50, 1, 9));
  const std::string target = work.directory / ("prepared/" + work.prepare({source}).hash());
  const std::string shard = target + "/shard-00000.safetensors", manifest = target + "/prepared.json";
  const std::string shard_bytes = read_bytes(shard), manifest_bytes = read_bytes(manifest);
  const auto refused = [&] { return message_of<Error>([&] { work.prepare({source}); }); };
  CHECK(refused().empty());

  write_bytes(shard, shard_bytes.substr(0, shard_bytes.size() - 1));
  CHECK_THAT(refused(), Contains(shard) && Contains("cut off"));
  std::mt19937_64 random(2);
  for (int round = 0; round < 50; ++round) {
    std::string altered = shard_bytes;
    altered[random() % altered.size()] ^= static_cast<char>(1 << random() % 8);
    write_bytes(shard, altered);
    CHECK_THAT(refused(), Contains(shard) && Contains("altered"));
  }
  std::filesystem::remove(shard);
  CHECK_THAT(refused(), Contains(shard));
  write_bytes(shard, shard_bytes);

  for (int round = 0; round < 200; ++round) {
    std::string altered = manifest_bytes.substr(0, random() % manifest_bytes.size());
    write_bytes(manifest, altered);
    CHECK_THAT(refused(), Contains(manifest));
  }
  auto escaping = json::parse(manifest_bytes);
  escaping["shards"][0]["file"] = "../shard-00000.safetensors";
  write_bytes(manifest, escaping.dump());
  CHECK_THAT(refused(), Contains("expected shard-00000.safetensors"));

  // A preparation that was killed leaves shards without a manifest: it is done again.
  std::filesystem::remove(manifest);
  write_bytes(shard, "half");
  CHECK(refused().empty());
  CHECK(read_bytes(shard) == shard_bytes);
}

TEST_CASE("packing: rows hold every item once and are never too long", "[data]") {
  std::mt19937_64 random(9);
  for (int round = 0; round < 100; ++round) {
    std::vector<int64_t> lengths;
    int64_t total = 0;
    const auto capacity = static_cast<int64_t>(10 + random() % 100);
    for (uint64_t n = random() % 300; n > 0; --n) {
      lengths.push_back(1 + static_cast<int64_t>(random() % static_cast<uint64_t>(capacity)));
      total += lengths.back();
    }
    const Packing packing = pack_best_fit(lengths, capacity);
    std::vector<int64_t> seen = packing.items;
    std::sort(seen.begin(), seen.end());
    CHECK(seen == one_per_row(static_cast<int64_t>(lengths.size())).items);
    int64_t rows_half_empty = 0;
    for (int64_t r = 0; r < packing.rows(); ++r) {
      int64_t length = 0;
      for (const int64_t item : packing.row(r)) length += lengths[static_cast<size_t>(item)];
      CHECK((length > 0 && length <= capacity));
      rows_half_empty += 2 * length <= capacity ? 1 : 0;
    }
    CHECK(rows_half_empty <= 1);  // two of them would have been one row
    CHECK(packing.rows() * capacity >= total);
  }
  CHECK_THROWS_AS(pack_best_fit({5, 11}, 10), Error);
}

TEST_CASE("loader: an epoch has every document once, in an order of its own", "[data]") {
  Workplace work;
  const auto shards = work.prepare("i", "ids", ids_lines(157, 4, 30));
  const bool pack = GENERATE(true, false);
  const Loader loader(shards, {.max_length = 64, .rows_per_step = 6, .pack = pack, .seed = 5});
  const Loader same(shards, {.max_length = 64, .rows_per_step = 6, .pack = pack, .seed = 5});
  const Loader other(shards, {.max_length = 64, .rows_per_step = 6, .pack = pack, .seed = 6});
  const int64_t steps = loader.steps_per_epoch();
  const auto epoch_of = [&](const Loader& from, int64_t epoch) {
    Rows all;
    for (int64_t step = epoch * steps; step < (epoch + 1) * steps; ++step) {
      const Rows rows = from.rows(step);
      CHECK((step % steps == steps - 1 ? rows.size() <= 6 && !rows.empty() : rows.size() == 6));
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  };
  const auto sequence = [](const Rows& rows) {
    std::vector<const int32_t*> ids;
    for (const auto& row : rows) {
      for (const Document& document : row) ids.push_back(document.tokens.data());
    }
    return ids;
  };
  const Rows first = epoch_of(loader, 0), second = epoch_of(loader, 1);
  CHECK(sequence(first).size() == 157);
  CHECK(identities(first).size() == 157);
  CHECK(identities(first) == identities(second));
  CHECK(sequence(first) != sequence(second));
  CHECK(sequence(first) != sequence(epoch_of(other, 0)));
  CHECK(sequence(second) == sequence(epoch_of(same, 1)));  // without having seen epoch 0
  CHECK(sequence(first) == sequence(epoch_of(loader, 0)));
  if (pack) {
    CHECK(loader.packing_efficiency() > 0.9);
    for (const auto& row : first) {
      int64_t length = 0;
      for (const Document& document : row) length += static_cast<int64_t>(document.tokens.size());
      CHECK(length <= 64);
    }
  } else {
    for (const auto& row : first) CHECK(row.size() == 1);
  }
}

TEST_CASE("loader: sources enter as often as their weights say", "[data]") {
  Workplace work;
  const auto shards = work.prepare({work.source("a", "ids", ids_lines(40, 1, 10), 2.25),
                                    work.source("b", "ids", ids_lines(60, 2, 10), 0.5),
                                    work.source("c", "ids", ids_lines(10, 3, 10), 0)});
  const Loader loader(shards, {.max_length = 4096, .rows_per_step = 1, .pack = false, .seed = 1});
  REQUIRE(loader.steps_per_epoch() == 90 + 30);
  std::map<const int32_t*, int> seen;
  for (int64_t step = 0; step < 2 * 120; ++step) {
    const Rows rows = loader.rows(step);
    for (const Document& document : rows[0]) ++seen[document.tokens.data()];
  }
  CHECK(seen.size() == 100);
  for (int64_t i = 0; i < shards.size(); ++i) {
    const int times = seen[shards.document(i).tokens.data()];
    if (shards.source(i) == 0) CHECK((times == 4 || times == 5));
    if (shards.source(i) == 1) CHECK(times == 1);  // one half in each epoch
    if (shards.source(i) == 2) CHECK(times == 0);
  }
  const auto nothing = work.prepare({work.source("c", "ids", ids_lines(10, 3, 10), 0)});
  CHECK_THROWS_AS(Loader(nothing, {.max_length = 64, .rows_per_step = 1}), Error);
}

TEST_CASE("loader: packed epochs of fractional weight have equally many rows", "[data]") {
  Workplace work;
  const auto shards = work.prepare({work.source("a", "ids", ids_lines(211, 1, 40), 0.3)});
  const Loader loader(shards, {.max_length = 50, .rows_per_step = 4, .seed = 1});
  for (int64_t step = 0; step < 5 * loader.steps_per_epoch(); ++step) {
    const Rows rows = loader.rows(step);
    CHECK(rows.size() == loader.rows(step % loader.steps_per_epoch()).size());
    for (const auto& row : rows) CHECK(!row.empty());
  }
}

TEST_CASE("micro_batch: every split covers the same rows", "[data]") {
  Workplace work;
  const auto shards = work.prepare("i", "ids", ids_lines(60, 4, 30));
  for (int64_t count = 0; count < 14; ++count) {
    Rows rows;
    for (int64_t r = 0; r < count; ++r) rows.push_back({shards.document(2 * r), shards.document(2 * r + 1)});
    for (const auto& [accumulation, world] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {4, 1}, {2, 2}, {1, 4}, {3, 2}}) {
      std::vector<const int32_t*> dealt, expected;
      size_t largest = 0, smallest = SIZE_MAX;
      for (int64_t rank = 0; rank < world; ++rank) {
        for (int64_t micro = 0; micro < accumulation; ++micro) {
          const auto share = micro_batch(rows, micro, accumulation, rank, world);
          for (const Document& document : share) dealt.push_back(document.tokens.data());
          largest = std::max(largest, share.size() / 2);
          smallest = std::min(smallest, share.size() / 2);
        }
      }
      for (const auto& row : rows) {
        for (const Document& document : row) expected.push_back(document.tokens.data());
      }
      CHECK(dealt == expected);
      CHECK(largest - smallest <= 1);
    }
  }
}

TEST_CASE("make_batch: labels look one ahead and never past a document", "[data]") {
  const std::vector<int32_t> a = {1, 10, 11, 2}, b = {1, 20};
  const std::vector<uint8_t> a_supervised = {0, 0, 1, 1}, b_supervised = {0, 1};
  const Batch batch = make_batch({{a, a_supervised}, {b, b_supervised}});
  CHECK(batch.tokens.equal(at::tensor({1, 10, 11, 2, 1, 20}, at::kLong)));
  CHECK(batch.labels.equal(at::tensor({-100, 11, 2, -100, 20, -100}, at::kLong)));
  CHECK(batch.positions.equal(at::tensor({0, 1, 2, 3, 0, 1}, at::kLong)));
  CHECK(batch.cu_seqlens.equal(at::tensor({0, 4, 6}, at::kInt)));
  CHECK(batch.supervised == 3);
  const Batch empty = make_batch({});
  CHECK((empty.tokens.numel() == 0 && empty.cu_seqlens.numel() == 1 && empty.supervised == 0));
}

TEST_CASE("show: labels stand out", "[data]") {
  const ByteTokenizer tokenizer;
  const auto document = tokenize_spans({{"ask:", false}, {" yes", true}}, tokenizer);
  CHECK(render_sample(document.view(), tokenizer, false) == "<BOS>ask:[[ yes<EOS>]]");
  CHECK(render_sample(document.view(), tokenizer, true) == "\033[2m<BOS>ask:\033[0m\033[32m yes<EOS>\033[0m");
}

TEST_CASE("prepare: the published data sets", "[data]") {
  const char* material = std::getenv("UNIATTN_MATERIAL");
  if (material == nullptr) {
    WARN("skipped: UNIATTN_MATERIAL is not set");
    return;
  }
  Workplace work;
  const std::string root = material;
  std::filesystem::copy_file(root + "/tokenizers/stories512/tok512.model", work.directory / "tokenizer.model");
  const auto tokenizer = load_tokenizer(work.directory.path());
  const std::vector<DataSource> sources = {
      {.path = root + "/data/pmc_llama_instructions_1000.json", .format = "alpaca"},
      {.path = root + "/data/tulu3_sft_filtered_1000.json", .format = "alpaca"},
      {.path = root + "/data/messages_500.jsonl", .format = "messages"}};
  const auto shards =
      prepare_tokens(sources, *tokenizer, work.directory.path(), {.max_length = 512}, work.directory / "p");
  CHECK(shards.counts().read == 2500);
  for (int64_t i = 0; i < shards.size(); ++i) {
    const Document document = shards.document(i);
    CHECK((document.tokens.size() <= 512 && document.tokens.front() == 1 && document.tokens.back() == 2));
    CHECK(std::count(document.tokens.begin(), document.tokens.end(), 1) == 1);
  }
  const Loader loader(shards, {.max_length = 512, .rows_per_step = 8});
  CHECK(loader.packing_efficiency() > 0.95);
}
