// Reads, tokenizes and writes all documents of a preparation, several at once; memory does not depend on how many there
// are.
#pragma once
#include <chrono>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "data/data_file.h"
#include "data/manifest.h"
#include "data/prepare.h"
#include "data/shard_writer.h"

namespace uniattn {

class Preparation {
 public:
  // The arguments must outlive this; shards go into `directory`.
  Preparation(const std::deque<DataFile>& files, const Tokenizer& tokenizer, const PrepareOptions& options,
              const std::string& directory);

  // Throws Error naming file, line and record of what cannot be read where `bad_records` says so, a file without any
  // record, and when no document is left.
  Manifest run(const std::string& hash);

 private:
  struct Item {
    int32_t file;
    Record record;
  };
  struct Outcome;
  void run_in_order();
  void run_samples();
  void process(std::span<const Item> batch);
  Outcome read(const Item& item) const;
  void add(const Outcome& outcome, int32_t file);
  bool enough() const;
  void report_progress(int64_t bytes);
  [[noreturn]] void fail_empty() const;

  const std::deque<DataFile>& files_;
  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
  ShardWriter writer_;
  std::vector<SourceEntry> sources_;
  PrepareCounts counts_;  // of all sources, once all are done
  int64_t kept_ = 0;
  std::vector<int64_t> documents_by_length_;
  int64_t bytes_ = 0, all_bytes_ = 0;
  std::chrono::steady_clock::time_point last_report_ = std::chrono::steady_clock::now();
};

}  // namespace uniattn
