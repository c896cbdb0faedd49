// From files to shards of prepared documents, and back.
#include <algorithm>
#include <cstdlib>
#include <random>

#include "data/loader.h"
#include "data/packing.h"
#include "data/records.h"
#include "data/shard_writer.h"
#include "data_workplace.h"
#include "storage/json.h"
#include "support/error.h"

using namespace uniattn;
using namespace uniattn::testing;
using nlohmann::json;

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
             contains("a.jsonl:2") && contains("invalid JSON at byte"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\"output\":\"y\"},\n\n{\"input\" 3}]"),
             contains("a.json:3, record 2") && contains("invalid JSON"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\"output\":\"y\"},]"), contains("record 2"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\",\n\"output\":7}]"),
             contains("a.json:1, record 1") && contains("\"output\": expected a string, got number"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"input\":\"x\"}]"), contains("\"output\" is missing"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[{\"output\":\"x\"}]"), contains("both missing"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[\"x\"]"), contains("expected an object"));
  CHECK_THAT(work.refusal("a.json", "alpaca", "[]"), contains("no document"));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[]}]"), contains("\"messages\""));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[{\"role\":\"tool\",\"content\":\"\"}]}]"),
             contains("\"tool\""));
  CHECK_THAT(work.refusal("m.json", "messages", "[{\"messages\":[{\"role\":\"user\"}]}]"), contains("\"content\""));
  CHECK_THAT(
      work.refusal("m.json", "messages", R"([{"messages":[{"role":"user","content":[{"type":"image","text":"x"}]}]}])"),
      contains("\"image\""));
  CHECK_THAT(work.refusal("t.jsonl", "text", "\"a\"\n17\n"), contains("t.jsonl:2") && contains("got number"));
  CHECK_THAT(work.refusal("i", "ids", "1 2\n3 259\n"), contains("i:2") && contains("259"));
  CHECK_THAT(work.refusal("i", "ids", "1 2\n3 -1\n"), contains("i:2") && contains("-1"));
  CHECK_THAT(work.refusal("i", "ids", "1 two\n"), contains("'two'"));
  CHECK_THAT(work.refusal("i", "ids", "1 99999999999999999999\n"), contains("999"));
  CHECK_THAT(work.refusal("i", "ids", "4\n5\n"), contains("none of the 2 documents"));
  CHECK_THAT(message_of<Error>([&] { work.prepare({{.path = work.directory / "none", .format = "ids"}}); }),
             contains("No such file"));
  work.options.over_long = "error";
  work.options.max_length = 3;
  CHECK_THAT(work.refusal("i", "ids", "1 2\n1 2 3 4\n"), contains("i:2, record 2") && contains("4 tokens"));

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
  CHECK_THAT(work.refusal("a.json", "alpaca", R"([{"input":"long prompt","output":"y"}])"), contains("none of the 1"));
}

TEST_CASE("prepare: records that cannot be read are counted, and the first is named", "[data]") {
  Workplace work;
  work.options.bad_records = "drop";
  const std::string good = R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})";
  const auto shards = work.prepare("m.jsonl", "messages",
                                   "[1, 2]\n" + good + "\n{\"messages\": 3}\n\xff\n" + good +
                                       "\n{\"messages\": [{\"role\": \"assistant\", \"content\": \" \"}]}\n");
  const PrepareCounts& counts = shards.counts();
  CHECK((counts.read == 6 && counts.kept == 2 && counts.dropped_bad == 3 && counts.dropped_without_labels == 1));
  CHECK_THAT(shards.sources()[0].first_bad, contains("m.jsonl:1, record 1") && contains("got array"));
  CHECK_THAT(work.refusal("m.jsonl", "messages", "{\n"), contains("1 bad") && contains("m.jsonl:1"));

  const std::string unasked = R"({"messages": [{"role": "assistant", "content": "a"}]})";
  const auto filtered = work.prepare("t.jsonl", "tulu_single_round", good + "\n" + unasked + "\n");
  CHECK((filtered.counts().kept == 1 && filtered.counts().dropped_filtered == 1));
  CHECK(all_text(filtered.document(0)) == "### Input:\nq\n\n### Response:a");
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
  RecordReader records(file, RecordReader::Kind::lines);
  while (const auto record = records.next()) {
    documents.push_back(read_ids(record->text, 259));
    writer.add(documents.back().view(), static_cast<int32_t>(documents.size() % 2));
  }
  Manifest manifest{.hash = "h",
                    .counts = {},
                    .sources = {{.path = "a", .weight = 1.0, .counts = {}, .first_bad = {}},
                                {.path = "b", .weight = 2.5, .counts = {}, .first_bad = {}}},
                    .shards = writer.finish()};
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
  CHECK_THAT(refused(), contains(shard) && contains("cut off"));
  std::mt19937_64 random(2);
  for (int round = 0; round < 50; ++round) {
    std::string altered = shard_bytes;
    altered[random() % altered.size()] ^= static_cast<char>(1 << random() % 8);
    write_bytes(shard, altered);
    CHECK_THAT(refused(), contains(shard) && contains("altered"));
  }
  std::filesystem::remove(shard);
  CHECK_THAT(refused(), contains(shard));
  write_bytes(shard, shard_bytes);

  for (int round = 0; round < 200; ++round) {
    std::string altered = manifest_bytes.substr(0, random() % (manifest_bytes.size() - 1));  // not the line end alone
    write_bytes(manifest, altered);
    CHECK_THAT(refused(), contains(manifest));
  }
  auto escaping = json::parse(manifest_bytes);
  escaping["shards"][0]["file"] = "../shard-00000.safetensors";
  write_bytes(manifest, escaping.dump());
  CHECK_THAT(refused(), contains("expected shard-00000.safetensors"));

  // A preparation that was killed leaves shards without a manifest: it is done again.
  std::filesystem::remove(manifest);
  write_bytes(shard, "half");
  CHECK(refused().empty());
  CHECK(read_bytes(shard) == shard_bytes);
}

TEST_CASE("packing: rows are counted as they are packed", "[data]") {
  std::mt19937_64 random(9);
  for (int round = 0; round < 300; ++round) {
    const auto capacity = static_cast<int64_t>(2 + random() % 40);
    std::vector<int64_t> lengths(random() % 60), by_length(static_cast<size_t>(capacity) + 1);
    for (int64_t& length : lengths) {
      length = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(capacity));
      ++by_length[static_cast<size_t>(length)];
    }
    CHECK(count_best_fit_rows(by_length, capacity) == pack_best_fit(lengths, capacity).rows());
  }
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
  CHECK(static_cast<double>(shards.tokens()) / static_cast<double>(shards.counts().rows * 512) > 0.97);
}
