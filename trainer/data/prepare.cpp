#include "data/prepare.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <deque>
#include <filesystem>

#include "data/manifest.h"
#include "data/random.h"
#include "data/records.h"
#include "data/shard_writer.h"
#include "data/formats.h"
#include "data/tokenize.h"
#include "storage/atomic_file.h"
#include "storage/file_lock.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kFormatVersion = 3;  // part of the key: raise it when the same inputs give other shards
constexpr size_t kShardTokens = 1 << 24;
constexpr size_t kBatch = 4096;  // records tokenized between two rounds of writing

// A data file with its records.
struct Source {
  explicit Source(const DataSource& described) : config(described), file(described.path), records(find_records()) {
    if (records.empty()) fail("{}: there is no document in it", config.path);
  }

  bool is_json() const {
    const auto extension = fs::path(config.path).extension();
    return config.format != "text" || extension == ".json" || extension == ".jsonl";
  }

  std::vector<Record> find_records() const {
    if (config.format == "ids") return line_records(file);
    return is_json() ? json_records(file) : whole_record(file);
  }

  std::string template_name() const {
    return config.template_name.empty() ? default_template(config.format) : config.template_name;
  }

  const DataSource& config;
  MappedFile file;
  std::vector<Record> records;
};

struct Reference {
  int32_t source;
  int64_t record;
};

void check_options(const std::vector<DataSource>& sources, const PrepareOptions& options) {
  if (sources.empty()) fail_usage("no data: name at least one file");
  const std::string& policy = options.over_long;
  if (policy != "truncate" && policy != "drop" && policy != "split" && policy != "error") {
    fail_usage("over_long: expected truncate, drop, split or error, got '{}'", policy);
  }
  if (options.bad_records != "drop" && options.bad_records != "error")
    fail_usage("bad_records: expected drop or error, got '{}'", options.bad_records);
  if (options.max_length < 2) fail_usage("max_length: expected at least 2 tokens, got {}", options.max_length);
  for (const DataSource& source : sources) {
    const std::string& format = source.format;
    if (format != "alpaca" && format != "messages" && format != "tulu_single_round" && format != "text" &&
        format != "ids") {
      fail_usage("{}: expected the format alpaca, messages, tulu_single_round, text or ids, got '{}'", source.path,
                 format);
    }
    if (policy == "split" && format != "text" && format != "ids") {
      fail_usage(
          "{}: over_long split would part answers from their prompts; use it for text and ids, or truncate or drop",
          source.path);
    }
  }
}

std::string key_of(const std::deque<Source>& sources, const Tokenizer& tokenizer, const std::string& model_directory,
                   const PrepareOptions& options) {
  nlohmann::json key = {{"version", kFormatVersion},
                        {"max_length", options.max_length},
                        {"over_long", options.over_long},
                        {"bad_records", options.bad_records},
                        {"samples", options.samples},
                        {"seed", options.samples > 0 ? options.seed : 0},
                        {"ids", {tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()}}};
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}) {
    const fs::path path = fs::path(model_directory) / name;
    if (fs::exists(path)) key["tokenizer"][name] = file_hash(path.string());
  }
  for (const Source& source : sources) {
    key["sources"].push_back({file_hash(source.config.path), source.config.format, source.template_name(),
                              source.is_json(), source.config.weight});
  }
  Hasher hasher;
  hasher.update(key.dump());
  return hasher.hex();
}

class Preparation {
 public:
  Preparation(const std::deque<Source>& sources, const Tokenizer& tokenizer, const PrepareOptions& options,
              const std::string& directory)
      : sources_(sources), tokenizer_(tokenizer), options_(options), writer_(directory, kShardTokens) {}

  Manifest run(const std::string& hash) {
    const std::vector<Reference> order = choose_order();
    for (size_t begin = 0; begin < order.size() && !enough(); begin += kBatch) {
      const std::span batch(order.begin() + begin, std::min(kBatch, order.size() - begin));
      std::vector<Outcome> documents(batch.size());
      at::parallel_for(0, static_cast<int64_t>(batch.size()), 8, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) documents[i] = read(batch[i]);
      });
      for (size_t i = 0; i < batch.size() && !enough(); ++i) add(documents[i], batch[i].source);
      report_progress(begin + batch.size(), order.size());
    }
    if (counts_.kept == 0) {
      fail(
          "{}{}: none of the {} documents has a token to learn ({} bad, {} filtered, {} over max_length, {} without "
          "labels){}",
          sources_[0].config.path, sources_.size() > 1 ? ", ..." : "", counts_.read, counts_.dropped_invalid,
          counts_.dropped_filtered, counts_.dropped_over_long, counts_.dropped_without_labels,
          first_bad_.empty() ? "" : "; the first bad one: " + first_bad_);
    }
    Manifest manifest{.hash = hash, .counts = counts_, .sources = {}, .shards = writer_.finish()};
    for (const Source& source : sources_) manifest.sources.push_back({source.config.path, source.config.weight});
    return manifest;
  }

 private:
  std::vector<Reference> choose_order() const {
    std::vector<Reference> order;
    for (size_t s = 0; s < sources_.size(); ++s) {
      for (size_t r = 0; r < sources_[s].records.size(); ++r) {
        order.push_back({static_cast<int32_t>(s), static_cast<int64_t>(r)});
      }
    }
    if (options_.samples > 0) Random({options_.seed}).shuffle(order);
    return order;
  }

  void report_progress(size_t done, size_t all) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_report_ < std::chrono::seconds(10)) return;
    last_report_ = now;
    log::info(fmt::format("tokenized {} of {} documents", done, all));
  }

  bool enough() const { return options_.samples > 0 && counts_.kept == options_.samples; }

  // A record that became a document, or why it did not.
  struct Outcome {
    FittedDocument document;
    std::string error;  // of a bad record
  };

  Outcome read(const Reference& reference) const {
    const Source& source = sources_[static_cast<size_t>(reference.source)];
    const Record& record = source.records[static_cast<size_t>(reference.record)];
    const std::string where = fmt::format("{}:{}, record {}", source.config.path, record.line, record.number);
    TokenizedDocument tokenized;
    try {
      auto document = tokenize(source, record);
      if (!document) return {{.fit = Fit::kFiltered, .parts = {}}, ""};
      tokenized = std::move(*document);
    } catch (const Error& error) {
      if (options_.bad_records == "error") fail("{}: {}", where, error.what());
      return {{.fit = Fit::kInvalid, .parts = {}}, fmt::format("{}: {}", where, error.what())};
    }
    try {
      return {fit_length(std::move(tokenized), options_.max_length, options_.over_long), ""};
    } catch (const Error& error) {
      fail("{}: {}", where, error.what());
    }
  }

  std::optional<TokenizedDocument> tokenize(const Source& source, const Record& record) const {
    const std::string& format = source.config.format;
    if (format == "ids") return read_ids(record.text, tokenizer_.vocab_size());
    const nlohmann::json parsed =
        source.is_json() ? parse_json(record.text, "the record") : nlohmann::json(std::string(record.text));
    const auto pieces = render_record(format, source.template_name(), parsed);
    if (!pieces) return std::nullopt;
    return tokenize_pieces(*pieces, tokenizer_);
  }

  void add(const Outcome& outcome, int32_t source) {
    const FittedDocument& document = outcome.document;
    ++counts_.read;
    counts_.kept += document.parts.empty() ? 0 : 1;
    counts_.truncated += document.fit == Fit::kTruncated ? 1 : 0;
    counts_.split += document.fit == Fit::kSplit ? 1 : 0;
    counts_.dropped_invalid += document.fit == Fit::kInvalid ? 1 : 0;
    counts_.dropped_filtered += document.fit == Fit::kFiltered ? 1 : 0;
    counts_.dropped_over_long += document.fit == Fit::kTooLong ? 1 : 0;
    counts_.dropped_without_labels += document.fit == Fit::kWithoutLabels ? 1 : 0;
    if (first_bad_.empty()) first_bad_ = outcome.error;
    for (const TokenizedDocument& part : document.parts) {
      writer_.add(part.view(), source);
      counts_.tokens += static_cast<int64_t>(part.tokens.size());
      for (const uint8_t supervised : part.supervised) counts_.supervised += supervised;
    }
  }

  const std::deque<Source>& sources_;
  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
  ShardWriter writer_;
  PrepareCounts counts_;
  std::string first_bad_;  // its place and what is wrong with it
  std::chrono::steady_clock::time_point last_report_ = std::chrono::steady_clock::now();
};

}  // namespace

TokenShards prepare_tokens(const std::vector<DataSource>& sources, const Tokenizer& tokenizer,
                           const std::string& model_directory, const PrepareOptions& options,
                           const std::string& directory) {
  check_options(sources, options);
  std::deque<Source> opened;
  for (const DataSource& source : sources) {
    opened.emplace_back(source);
    if (source.format != "ids") check_template(opened.back().template_name(), tokenizer);
  }
  const std::string key = key_of(opened, tokenizer, model_directory, options);
  const std::string target = (fs::path(directory) / key).string();

  create_directories(directory);
  const FileLock lock(target + ".lock");
  const fs::path manifest = fs::path(target) / kManifestFile;
  if (!fs::exists(manifest)) {
    fs::remove_all(target);  // shards of a preparation that was killed
    create_directories(target);
    const nlohmann::json finished = Preparation(opened, tokenizer, options, target).run(key);
    write_file_atomically(manifest.string(), finished.dump(2) + "\n");
  }
  return TokenShards(target);
}

}  // namespace uniattn
