// Text to token shards: every document rendered, tokenized once, its labels marked, over-long ones handled by policy.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/shards.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

struct PrepareOptions {
  int64_t max_length = 1024;
  std::string over_long = "truncate";  // truncate | drop | split | error
  std::string bad_records = "drop";    // drop | error: records that cannot be read
  // Keep this many documents (fewer if there are not as many), in an order chosen by `seed`; 0 keeps all.
  int64_t samples = 0;
  int64_t seed = 0;
};

// What happened to the documents; every one that was read is counted once in kept or in a dropped_* field. truncated
// and split ones are among the kept. A document that is split becomes several documents of TokenShards.
struct PrepareCounts {
  int64_t read = 0, kept = 0, truncated = 0, split = 0;
  int64_t dropped_bad = 0, dropped_filtered = 0, dropped_over_long = 0, dropped_without_labels = 0;
  int64_t tokens = 0, supervised = 0;
  int64_t rows = 0;  // of max_length tokens that best fit packs the documents into, each once; of all sources alone
  PrepareCounts& operator+=(const PrepareCounts& other);
};

// Formats and templates of `sources`, and what is dropped: docs/data.md. BOS begins every document but `ids` ones.
// over_long: truncate keeps the answer's end as the last token (not for ids, which are cut); split is for text and ids
// only.
//
// Tokenizes `sources` into `<directory>/<key>/`, key being a hash of the files' contents, the tokenizer and the
// options: a second call with the same inputs reads the counts back and does nothing else. Of several processes that
// ask at once one works and the others wait. Returns the shards. Throws Error naming file, line and record of what
// cannot be read where `bad_records` says so, and when no document is left; UsageError for options that do not fit.
TokenShards prepare_tokens(const std::vector<DataSource>& sources, const Tokenizer& tokenizer,
                           const std::string& model_directory, const PrepareOptions& options,
                           const std::string& directory);

}  // namespace uniattn
