// Text to token shards: every document rendered, tokenized once, its labels marked, over-long ones handled by policy.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/shards.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// A rendered sample: spans in order; only supervised ones carry loss. Each span is tokenized on its own, so the loss begins exactly at the answer.
struct Span {
  std::string text;
  bool supervised = false;
};

struct PrepareOptions {
  int64_t max_length = 1024;
  std::string over_long = "truncate";  // truncate | drop | split | error
  int64_t samples = 0;                 // keep this many documents, chosen by `seed`; 0 keeps all
  int64_t seed = 0;
};

// What happened to the documents; every one that was read is counted once in kept or in a dropped_* field.
struct PrepareCounts {
  int64_t read = 0, kept = 0, truncated = 0, split = 0;
  int64_t dropped_over_long = 0, dropped_without_labels = 0, dropped_malformed = 0;
  int64_t tokens = 0, supervised = 0;
};

// Tokenizes `sources` into `<directory>/<key>/`, key being a hash of the files' contents, the tokenizer and the options: a second call with the
// same inputs reads the counts back and does nothing else. Returns the shards. Throws Error naming file and line of what cannot be read.
TokenShards prepare_tokens(const std::vector<DataSource>& sources, const Tokenizer& tokenizer, const std::string& model_directory,
                           const PrepareOptions& options, const std::string& directory);

}  // namespace uniattn
