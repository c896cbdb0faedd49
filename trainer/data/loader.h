// From documents to batches of packed sequences, the same for every split of a step into micro-batches and ranks.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "data/shards.h"
#include "model/batch.h"

namespace uniattn {

Batch make_batch(const std::vector<Document>& documents);

// The first token of `document` without a loss: for a rank that has nothing to do while others pass through the model.
Batch make_silent_batch(const Document& document);

// The rows of an epoch: documents packed into rows of at most max_length tokens (best fit on lengths, deterministic),
// or one document per row when not packing. Sources with weight w enter each epoch floor(w) times, and once more a
// seeded choice of the fraction, which moves on from epoch to epoch until every document had its turn. Every epoch has
// as many rows as the first: where that choice packs into more or fewer, surplus rows are left out and missing ones
// taken twice.
class Loader {
 public:
  struct Options {
    int64_t max_length, rows_per_step;  // rows_per_step = micro_batch x accumulation x world size
    bool pack = true;
    int64_t seed = 0;
  };
  // Throws Error when a document is longer than max_length, or the weights leave no document at all.
  Loader(TokenShards shards, Options options);
  int64_t steps_per_epoch() const;    // the last step of an epoch may have fewer rows
  double packing_efficiency() const;  // tokens of the first epoch by rows x max_length
  // Documents of the rows of step `step` (counted over epochs, reshuffled in each); pure function of options and step.
  // Keeps the layout of the last epoch asked for: not to be called from several threads at once.
  std::vector<std::vector<Document>> rows(int64_t step) const;

 private:
  struct Epoch;
  std::vector<int64_t> documents_of(int64_t epoch) const;
  std::shared_ptr<const Epoch> lay_out(int64_t epoch) const;

  TokenShards shards_;
  Options options_;
  std::vector<std::vector<int64_t>> by_source_;  // documents of each source, in a seeded order
  std::shared_ptr<const Epoch> first_;
  mutable std::shared_ptr<const Epoch> latest_;
};

// The share of `rows` that micro-batch `micro` of `accumulation` on `rank` of `world` works on; may be empty.
std::vector<Document> micro_batch(const std::vector<std::vector<Document>>& rows, int64_t micro, int64_t accumulation,
                                  int64_t rank, int64_t world);

}  // namespace uniattn
