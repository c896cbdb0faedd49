// From shards to rows and batches.
#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/loader.h"
#include "data/packing.h"
#include "data/random.h"
#include "data_workplace.h"
#include "support/error.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

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
