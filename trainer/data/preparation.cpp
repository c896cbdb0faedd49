#include "data/preparation.h"

#include <ATen/Parallel.h>
#include <malloc.h>

#include "data/packing.h"
#include "data/random.h"
#include "support/error.h"
#include "support/log.h"
#include "tokenizer/utf8.h"

namespace uniattn {
namespace {

constexpr size_t kShardTokens = 1 << 22;
// Tokenized between two rounds of writing: enough to keep all threads busy, little enough to stay in memory.
constexpr size_t kBatchRecords = 4096;
constexpr size_t kBatchBytes = 4 << 20;

// A message that may quote the data at length or in bytes that are no text, as a manifest and a log can hold it.
std::string presentable(const std::string& message) {
  constexpr size_t kLongest = 400;
  return replace_invalid_utf8(message.size() <= kLongest ? message : message.substr(0, kLongest) + "...");
}

}  // namespace

// What became of a record.
struct Preparation::Outcome {
  FittedDocument document;
  std::string error;  // its place and what is wrong, for a bad one
};

Preparation::Preparation(const std::deque<DataFile>& files, const Tokenizer& tokenizer, const PrepareOptions& options,
                         const std::string& directory)
    : files_(files),
      tokenizer_(tokenizer),
      options_(options),
      writer_(directory, kShardTokens),
      documents_by_length_(static_cast<size_t>(options.max_length) + 1) {
  for (const DataFile& file : files) {
    sources_.push_back({.path = file.source().path, .weight = file.source().weight, .counts = {}, .first_bad = {}});
    all_bytes_ += file.bytes();
  }
}

Manifest Preparation::run(const std::string& hash) {
  options_.samples > 0 ? run_samples() : run_in_order();
  for (const SourceEntry& source : sources_) counts_ += source.counts;
  if (counts_.kept == 0) fail_empty();
  counts_.rows = count_best_fit_rows(documents_by_length_, options_.max_length);
  return {.hash = hash, .counts = counts_, .sources = std::move(sources_), .shards = writer_.finish()};
}

void Preparation::run_in_order() {
  for (size_t f = 0; f < files_.size(); ++f) {
    RecordReader reader = files_[f].records();
    std::vector<Item> batch;
    size_t bytes = 0;
    const auto flush = [&] {
      process(batch);
      reader.release();
      malloc_trim(0);  // what the C library keeps for later would grow with the data
      batch.clear();
      bytes = 0;
    };
    while (const auto record = reader.next()) {
      batch.push_back({static_cast<int32_t>(f), *record});
      bytes += record->text.size();
      if (batch.size() == kBatchRecords || bytes >= kBatchBytes) flush();
    }
    flush();
    if (sources_[f].counts.read == 0) fail("{}: there is no document in it", sources_[f].path);
  }
}

// A random order needs to know where all records are: 32 bytes for each.
void Preparation::run_samples() {
  std::vector<Item> items;
  for (size_t f = 0; f < files_.size(); ++f) {
    RecordReader reader = files_[f].records();
    const size_t before = items.size();
    while (const auto record = reader.next()) {
      items.push_back({static_cast<int32_t>(f), *record});
      if (items.size() % kBatchRecords == 0) reader.release();
    }
    if (items.size() == before) fail("{}: there is no document in it", sources_[f].path);
  }
  Random({options_.seed}).shuffle(items);
  for (std::span<const Item> rest = items; !rest.empty() && !enough();) {
    const size_t count = std::min({kBatchRecords, rest.size(), static_cast<size_t>(2 * options_.samples)});
    process(rest.first(count));
    rest = rest.subspan(count);
  }
}

void Preparation::process(std::span<const Item> batch) {
  std::vector<Outcome> outcomes(batch.size());
  at::parallel_for(0, static_cast<int64_t>(batch.size()), 8, [&](int64_t from, int64_t to) {
    for (auto i = static_cast<size_t>(from); i < static_cast<size_t>(to); ++i) outcomes[i] = read(batch[i]);
  });
  int64_t bytes = 0;
  for (size_t i = 0; i < batch.size() && !enough(); ++i) {
    add(outcomes[i], batch[i].file);
    bytes += static_cast<int64_t>(batch[i].record.text.size());
  }
  report_progress(bytes);
}

Preparation::Outcome Preparation::read(const Item& item) const {
  const DataFile& file = files_[static_cast<size_t>(item.file)];
  const auto where = [&] {
    return fmt::format("{}:{}, record {}", file.source().path, item.record.line, item.record.number);
  };
  TokenizedDocument tokenized;
  try {
    auto document = file.tokenize(item.record, tokenizer_);
    if (!document) return {{.fit = Fit::kFiltered, .parts = {}}, ""};
    tokenized = std::move(*document);
  } catch (const Error& error) {
    std::string message = presentable(fmt::format("{}: {}", where(), error.what()));
    if (options_.bad_records == "error") throw Error(message);
    return {{.fit = Fit::kBad, .parts = {}}, std::move(message)};
  }
  try {
    return {fit_length(std::move(tokenized), options_.max_length, options_.over_long), ""};
  } catch (const Error& error) {
    fail("{}: {}", where(), error.what());
  }
}

void Preparation::add(const Outcome& outcome, int32_t file) {
  const FittedDocument& document = outcome.document;
  SourceEntry& source = sources_[static_cast<size_t>(file)];
  PrepareCounts& counts = source.counts;
  ++counts.read;
  counts.kept += document.parts.empty() ? 0 : 1;
  counts.truncated += document.fit == Fit::kTruncated ? 1 : 0;
  counts.split += document.fit == Fit::kSplit ? 1 : 0;
  counts.dropped_bad += document.fit == Fit::kBad ? 1 : 0;
  counts.dropped_filtered += document.fit == Fit::kFiltered ? 1 : 0;
  counts.dropped_over_long += document.fit == Fit::kTooLong ? 1 : 0;
  counts.dropped_without_labels += document.fit == Fit::kWithoutLabels ? 1 : 0;
  if (source.first_bad.empty()) source.first_bad = outcome.error;
  kept_ += document.parts.empty() ? 0 : 1;
  for (const TokenizedDocument& part : document.parts) {
    writer_.add(part.view(), file);
    ++documents_by_length_[part.tokens.size()];
    counts.tokens += static_cast<int64_t>(part.tokens.size());
    for (const uint8_t supervised : part.supervised) counts.supervised += supervised;
  }
}

bool Preparation::enough() const {
  return options_.samples > 0 && kept_ == options_.samples;
}

void Preparation::report_progress(int64_t bytes) {
  bytes_ += bytes;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_report_ < std::chrono::seconds(10)) return;
  last_report_ = now;
  log::info(
      fmt::format("tokenized {} documents, {} % of the data", kept_, 100 * bytes_ / std::max<int64_t>(all_bytes_, 1)));
}

void Preparation::fail_empty() const {
  std::string first_bad;
  for (const SourceEntry& source : sources_) {
    if (first_bad.empty() && !source.first_bad.empty()) first_bad = "; the first bad one: " + source.first_bad;
  }
  fail(
      "{}{}: none of the {} documents has a token to learn ({} bad, {} filtered, {} over max_length, {} without "
      "labels){}",
      sources_[0].path, sources_.size() > 1 ? ", ..." : "", counts_.read, counts_.dropped_bad, counts_.dropped_filtered,
      counts_.dropped_over_long, counts_.dropped_without_labels, first_bad);
}

}  // namespace uniattn
