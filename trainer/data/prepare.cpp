#include "data/prepare.h"

#include <deque>
#include <filesystem>

#include "data/preparation.h"
#include "storage/atomic_file.h"
#include "storage/file_lock.h"
#include "storage/hash.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kFormatVersion = 3;  // part of the key: raise it when the same inputs give other shards

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
    if (policy == "split" && source.format != "text" && source.format != "ids") {
      fail_usage(
          "{}: over_long split would part answers from their prompts; use it for text and ids, or truncate or drop",
          source.path);
    }
  }
}

std::string key_of(const std::deque<DataFile>& files, const Tokenizer& tokenizer, const std::string& model_directory,
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
  for (const DataFile& file : files) key["sources"].push_back(file.key());
  Hasher hasher;
  hasher.update(key.dump());
  return hasher.hex();
}

}  // namespace

PrepareCounts& PrepareCounts::operator+=(const PrepareCounts& other) {
  read += other.read, kept += other.kept, truncated += other.truncated, split += other.split;
  dropped_bad += other.dropped_bad, dropped_filtered += other.dropped_filtered;
  dropped_over_long += other.dropped_over_long, dropped_without_labels += other.dropped_without_labels;
  tokens += other.tokens, supervised += other.supervised;
  return *this;
}

TokenShards prepare_tokens(const std::vector<DataSource>& sources, const Tokenizer& tokenizer,
                           const std::string& model_directory, const PrepareOptions& options,
                           const std::string& directory) {
  check_options(sources, options);
  std::deque<DataFile> files;
  for (const DataSource& source : sources) files.emplace_back(source).check(tokenizer);
  const std::string key = key_of(files, tokenizer, model_directory, options);
  const std::string target = (fs::path(directory) / key).string();

  create_directories(directory);
  const FileLock lock(target + ".lock");
  const fs::path manifest = fs::path(target) / kManifestFile;
  if (!fs::exists(manifest)) {
    fs::remove_all(target);  // shards of a preparation that was killed
    create_directories(target);
    const nlohmann::json finished = Preparation(files, tokenizer, options, target).run(key);
    write_file_atomically(manifest.string(), finished.dump(2) + "\n");
  }
  return TokenShards(target);
}

}  // namespace uniattn
