#include "train/evaluate_layerwise.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>

#include <span>

#include "model/attention.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

constexpr size_t kPassTokens = 65536;  // whose hidden states are in memory at once
constexpr size_t kPartTokens = 4096;   // that run through a layer at once

struct Part {
  Batch batch;
  Sequences sequences;
  at::Tensor stream;  // [T, D]
  Leaders leaders;
};

// The first documents of `documents`, at least one, with at most `max_tokens` tokens; taken off.
std::span<const Document> take(std::span<const Document>& documents, size_t max_tokens) {
  size_t count = 0, tokens = 0;
  for (; count < documents.size(); ++count) {
    tokens += documents[count].tokens.size();
    if (count > 0 && tokens > max_tokens) break;
  }
  const auto taken = documents.first(count);
  documents = documents.subspan(count);
  return taken;
}

class LayerwiseModel {
 public:
  LayerwiseModel(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan, at::ScalarType dtype,
                 at::Device device)
      : config_(config), tensors_(tensors), plan_(plan), dtype_(dtype), device_(device) {
    const std::vector<TensorSpec> specs = tensor_specs(config, plan);
    embedding_ = specs.front();
    head_ = config.tied_embeddings ? specs.front() : specs.back();
    norm_ = config.tied_embeddings ? specs.back() : specs[specs.size() - 2];
  }

  // The sum of the losses of all supervised tokens.
  double loss(std::span<const Document> documents) const {
    std::vector<Part> parts = embedded(documents);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const Layer layer = read_layer(tensors_, config_, plan_.layers[static_cast<size_t>(i)], i, dtype_, device_);
      tensors_.release();
      for (Part& part : parts)
        part.stream = advance(config_, plan_, i, layer, part.stream, part.sequences, part.leaders);
    }
    const at::Tensor norm_weight = read_tensor(tensors_, norm_, dtype_, device_);
    const at::Tensor head = read_tensor(tensors_, head_, dtype_, device_);
    tensors_.release();
    double sum = 0;
    for (const Part& part : parts) {
      const at::Tensor hidden = norm(config_, part.stream, norm_weight);
      sum +=
          linear_cross_entropy(hidden, head, part.batch.labels, config_.final_softcap).sum(at::kDouble).item<double>();
    }
    return sum;
  }

 private:
  // Only the rows of the embedding that are needed are read.
  std::vector<Part> embedded(std::span<const Document> documents) const {
    const at::Tensor embedding = tensors_.tensor(embedding_.name);
    std::vector<Part> parts;
    while (!documents.empty()) {
      const auto some = take(documents, kPartTokens);
      // Gathered on the CPU, where the file is mapped.
      Part part{.batch = make_batch({some.begin(), some.end()}), .sequences = {}, .stream = {}, .leaders = {}};
      const at::Tensor rows = embedding.index_select(0, part.batch.tokens).to(device_, dtype_);
      if (!at::isfinite(rows.sum(at::kDouble)).item<bool>())
        fail("tensor `{}` holds values that are not finite (NaN or infinity)", embedding_.name);
      part.stream = embed(config_, rows, at::arange(rows.size(0), at::dtype(at::kLong).device(device_)));
      part.batch = to_device(part.batch, device_);
      part.sequences = make_sequences(config_, part.batch.positions, part.batch.cu_seqlens);
      parts.push_back(std::move(part));
    }
    tensors_.release();
    return parts;
  }

  const ModelConfig& config_;
  const TensorSource& tensors_;
  const SharingPlan& plan_;
  at::ScalarType dtype_;
  at::Device device_;
  TensorSpec embedding_, norm_, head_;
};

}  // namespace

Evaluation evaluate_layerwise(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                              at::ScalarType dtype, const std::vector<Document>& documents, at::Device device,
                              ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  std::vector<Document> own;
  for (size_t i = group.rank(); i < documents.size(); i += group.world_size()) own.push_back(documents[i]);
  const LayerwiseModel model(config, tensors, plan, dtype, device);
  double sum = 0;
  int64_t tokens = 0;
  for (std::span<const Document> rest = own; !rest.empty();) {
    const auto some = take(rest, kPassTokens);
    sum += model.loss(some);
    for (const Document& document : some)
      tokens += std::count(document.supervised.begin(), document.supervised.end(), 1);
    log::info(fmt::format("evaluated {} of {} documents", own.size() - rest.size(), own.size()));
  }
  return over_ranks(sum, tokens, group);
}

}  // namespace uniattn
