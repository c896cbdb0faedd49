#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "support/error.h"

namespace uniattn {
namespace {

// Tokens that run through the model at once: enough to fill the cores, little enough to stay small.
constexpr size_t kBatchTokens = 4096;

std::vector<std::vector<Document>> batches_of_rank(const std::vector<Document>& documents, int64_t rank,
                                                   int64_t world_size) {
  std::vector<std::vector<Document>> batches;
  size_t tokens = 0;
  for (size_t i = rank; i < documents.size(); i += world_size) {
    tokens += documents[i].tokens.size();
    if (tokens > kBatchTokens || batches.empty()) batches.emplace_back(), tokens = documents[i].tokens.size();
    batches.back().push_back(documents[i]);
  }
  return batches;
}

}  // namespace

double Evaluation::perplexity() const {
  return std::exp(loss);
}

Evaluation over_ranks(double loss_sum, int64_t tokens, ProcessGroup& group) {
  const double sum = group.sum(loss_sum);
  const int64_t count = group.sum(tokens);
  if (count == 0) fail("there is nothing to evaluate: no token is predicted");
  return {sum / static_cast<double>(count), count};
}

Evaluation evaluate(const Decoder& model, const std::vector<Document>& documents, ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  if (documents.empty()) fail("there is nothing to evaluate: no document");
  const std::vector<std::vector<Document>> own = batches_of_rank(documents, group.rank(), group.world_size());
  const std::vector<int64_t> counts = group.all_gather(static_cast<int64_t>(own.size()));
  double sum = 0;
  int64_t tokens = 0;
  // All ranks pass through the model equally often: its parameters may be divided over them.
  for (int64_t i = 0; i < *std::max_element(counts.begin(), counts.end()); ++i) {
    const Batch batch = i < counts[group.rank()] ? make_batch(own[i]) : make_silent_batch(documents[0]);
    sum += model.token_losses(to_device(batch, model.embedding.device())).sum(at::kDouble).item<double>();
    tokens += batch.supervised;
  }
  return over_ranks(sum, tokens, group);
}

}  // namespace uniattn
