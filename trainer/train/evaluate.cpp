#include "train/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "support/error.h"

namespace uniattn {
namespace {

// Tokens that run through the model at once: enough to fill the cores, little enough to stay small.
constexpr size_t kBatchTokens = 4096;

}  // namespace

double Evaluation::perplexity() const {
  return std::exp(loss);
}

Evaluation evaluate(const Decoder& model, const std::vector<Document>& documents, ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  double sum = 0;
  int64_t tokens = 0;
  std::vector<Document> waiting;
  size_t waiting_tokens = 0;
  auto flush = [&] {
    if (waiting.empty()) return;
    const Batch batch = make_batch(waiting);
    sum += model.token_losses(batch).sum(at::kDouble).item<double>();
    tokens += batch.supervised;
    waiting.clear();
    waiting_tokens = 0;
  };
  for (size_t i = group.rank(); i < documents.size(); i += group.world_size()) {
    if (waiting_tokens + documents[i].tokens.size() > kBatchTokens) flush();
    waiting.push_back(documents[i]);
    waiting_tokens += documents[i].tokens.size();
  }
  flush();
  at::Tensor totals = at::tensor({sum, static_cast<double>(tokens)}, at::kDouble);
  group.all_reduce_sum(totals);
  const auto all_tokens = static_cast<int64_t>(totals[1].item<double>());
  if (all_tokens == 0) fail("there is nothing to evaluate: no token is predicted");
  return {totals[0].item<double>() / static_cast<double>(all_tokens), all_tokens};
}

}  // namespace uniattn
