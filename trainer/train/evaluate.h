// Loss of a model on documents.
#pragma once
#include "data/loader.h"
#include "model/decoder.h"
#include "parallel/process_group.h"

namespace uniattn {

struct Evaluation {
  double loss = 0;     // nats per predicted (supervised) token
  int64_t tokens = 0;  // predicted tokens
  double perplexity() const;
};

// Of all ranks together: `loss_sum` over `tokens` predicted tokens is this one's. Throws Error when there is no token.
Evaluation over_ranks(double loss_sum, int64_t tokens, ProcessGroup& group);

// Mean over all supervised tokens; ranks share the documents. Throws Error when there is none.
Evaluation evaluate(const Decoder& model, const std::vector<Document>& documents, ProcessGroup& group);

}  // namespace uniattn
