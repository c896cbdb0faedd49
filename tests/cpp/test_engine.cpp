#include "catch.h"
#include "inference/engine_thread.h"
#include "inference/page_table.h"
#include "inference/text_stream.h"
#include "support/error.h"
#include "tiny_model.h"

#include "commands/pipeline.h"

namespace uniattn {
namespace {

using testing::TemporaryDirectory;

Decoder read_tiny(const std::string& path) {
  return load_decoder(testing::write_tiny_model(path), at::kFloat, at::kCPU);
}

// Id i is the i-th of a few pieces; id 0 is half of a character.
class Pieces : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view) const override { return {}; }
  std::vector<int32_t> encode_continuation(std::string_view) const override { return {}; }
  std::string decode(const std::vector<int32_t>& ids) const override {
    const std::vector<std::string> pieces{"\uFFFD", "ab", "END", "E", "N", "D", " x"};
    std::string text;
    for (const int32_t id : ids) text += pieces[static_cast<size_t>(id)];
    return text;
  }
  int64_t vocab_size() const override { return 7; }
  int32_t bos_id() const override { return -1; }
  int32_t eos_id() const override { return -1; }
};

std::string shown(const std::vector<int32_t>& ids, std::vector<std::string> stops, bool stopped) {
  const Pieces pieces;
  TextStream stream(pieces, std::move(stops));
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  text += stream.finish();
  CHECK(stream.stopped() == stopped);
  return text;
}

TEST_CASE("pages are taken as a sequence grows, used in turn under a window, and given back", "[engine]") {
  CHECK(pages_held(64, 0) == 1);
  CHECK(pages_held(65, 0) == 2);
  CHECK(pages_held(10000, 64) == 2);
  CHECK(pages_held(10000, 65) == 2);
  CHECK(pages_held(10000, 66) == 3);
  PageTable table(64);
  std::vector<int32_t> first, second;
  table.extend(first, 1000);
  table.extend(second, 10);
  CHECK(table.used() == 3);
  CHECK(table.first_held(1000) == 14 * 64);
  CHECK(PageTable::slot(first, 14 * 64) == first[0] * 64);
  CHECK(PageTable::slot(first, 15 * 64 + 3) == first[1] * 64 + 3);
  table.release(first);
  CHECK(table.used() == 1);
  table.extend(second, 100);
  CHECK(table.size() == 3);
}

TEST_CASE("text is held back while it may become a stop string", "[engine]") {
  CHECK(shown({1, 6, 2, 1}, {"END"}, true) == "ab x");
  CHECK(shown({1, 3, 4, 5, 1}, {"END"}, true) == "ab");
  CHECK(shown({1, 3, 4, 1}, {"END"}, false) == "abENab");
  CHECK(shown({1, 3, 4}, {"END"}, false) == "abEN");
  CHECK(shown({1, 3, 4, 5}, {"END", "b"}, true) == "a");
  CHECK(shown({1, 0}, {}, false) == "ab\uFFFD");
  const Pieces pieces;
  TextStream stream(pieces, {"END"});
  CHECK(stream.push(1) == "ab");
  CHECK(stream.push(3) == "");
  CHECK(stream.push(1) == "Eab");
}

TEST_CASE("requests join and leave a running engine", "[engine]") {
  const TemporaryDirectory scratch;
  const Decoder model = read_tiny(scratch / "model");
  const auto alone = [&](const std::vector<int64_t>& prompt) {
    Engine engine(model);
    std::vector<int64_t> tokens;
    run_to_end(engine, {{prompt, 20, {}, {}, [&](int64_t token) {
                           tokens.push_back(token);
                           return true;
                         }}});
    return tokens;
  };
  Engine engine(model, {.max_batch = 2, .prefill_chunk = 3});
  std::map<int64_t, std::vector<int64_t>> tokens;
  const std::vector<std::vector<int64_t>> prompts{{5, 6, 7, 8, 9}, {3}, {4, 4}, {30, 20, 10, 9}};
  for (size_t i = 0; i < prompts.size(); ++i) {
    engine.add({prompts[i], 20, {}, {}, [&tokens, i](int64_t token) {
                  tokens[static_cast<int64_t>(i)].push_back(token);
                  return true;
                }});
    engine.step();
  }
  CHECK(engine.running() == 2);
  CHECK(engine.waiting() == 2);
  engine.cancel(1);
  engine.cancel(3);
  while (!engine.idle()) engine.step();
  CHECK(tokens[0] == alone(prompts[0]));
  CHECK(tokens[2] == alone(prompts[2]));
  CHECK(tokens[1].size() < 20);
  CHECK(tokens[3].empty());
}

TEST_CASE("the engine refuses what it cannot do", "[engine]") {
  const TemporaryDirectory scratch;
  const Decoder model = read_tiny(scratch / "model");
  Engine engine(model);
  CHECK_THROWS_WITH(engine.add({{}, 5, {}, {}, {}}), contains("the prompt is empty"));
  CHECK_THROWS_WITH(engine.add({{40}, 5, {}, {}, {}}), contains("token id 40 is outside the vocabulary of 40"));
  CHECK_THROWS_WITH(engine.add({{1}, 0, {}, {}, {}}), contains("max_new_tokens is 0"));
  CHECK_THROWS_WITH(engine.add({{1}, 1, {.top_p = 2}, {}, {}}), contains("top_p is 2"));
  CHECK_THROWS_WITH(Engine(model, {.max_batch = 0}), contains("max_batch is 0"));
}

TEST_CASE("a full queue takes nothing, and answers end when the thread does", "[engine]") {
  const TemporaryDirectory scratch;
  const Decoder model = read_tiny(scratch / "model");
  std::vector<std::shared_ptr<TokenQueue>> queues;
  {
    EngineThread thread(model, {.max_batch = 1}, 1);
    const GenerationRequest request{{1, 2, 3}, 1 << 20, {}, {}, {}};
    queues = thread.submit({request, request});
    REQUIRE(queues.size() == 2);
    CHECK(thread.submit({request}).empty());
    queues[1]->cancel();
    TokenQueue::Batch batch;
    while (!batch.ended) batch = queues[1]->take(std::chrono::milliseconds(10));
    CHECK(batch.tokens.empty());
  }
  CHECK(queues[0]->take(std::chrono::milliseconds(0)).ended);
}

}  // namespace
}  // namespace uniattn
