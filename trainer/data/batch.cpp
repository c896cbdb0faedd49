#include <ATen/ops/empty.h>

#include "data/loader.h"

namespace uniattn {

Batch make_batch(const std::vector<Document>& documents) {
  int64_t total = 0;
  for (const Document& document : documents) total += static_cast<int64_t>(document.tokens.size());
  const auto sequences = static_cast<int64_t>(documents.size());
  Batch batch{.tokens = at::empty({total}, at::kLong),
              .labels = at::empty({total}, at::kLong),
              .positions = at::empty({total}, at::kLong),
              .cu_seqlens = at::empty({sequences + 1}, at::kInt)};
  auto* tokens = batch.tokens.mutable_data_ptr<int64_t>();
  auto* labels = batch.labels.mutable_data_ptr<int64_t>();
  auto* positions = batch.positions.mutable_data_ptr<int64_t>();
  auto* ends = batch.cu_seqlens.mutable_data_ptr<int32_t>();
  int64_t at = 0;
  *ends++ = 0;
  for (const Document& document : documents) {
    for (size_t t = 0; t < document.tokens.size(); ++t, ++at) {
      const bool learn = t + 1 < document.tokens.size() && document.supervised[t + 1] != 0;
      tokens[at] = document.tokens[t];
      labels[at] = learn ? document.tokens[t + 1] : -100;
      positions[at] = static_cast<int64_t>(t);
      batch.supervised += learn ? 1 : 0;
    }
    *ends++ = static_cast<int32_t>(at);
  }
  return batch;
}

Batch make_silent_batch(const Document& document) {
  return make_batch({{document.tokens.first(1), document.supervised.first(1)}});
}

std::vector<Document> micro_batch(const std::vector<std::vector<Document>>& rows, int64_t micro, int64_t accumulation,
                                  int64_t rank, int64_t world) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t slot = rank * accumulation + micro, slots = accumulation * world;
  std::vector<Document> documents;
  for (int64_t r = count * slot / slots; r < count * (slot + 1) / slots; ++r) {
    documents.insert(documents.end(), rows[static_cast<size_t>(r)].begin(), rows[static_cast<size_t>(r)].end());
  }
  return documents;
}

}  // namespace uniattn
