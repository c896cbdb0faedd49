#include "calibration/token_stream.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "data/loader.h"
#include "parallel/device.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr size_t kChunkTokens = 4096;

void add_chunks(const ModelConfig& config, const TokenShards& data, int64_t begin, int64_t end, bool held_out,
                at::Device device, const ProcessGroup& group, std::vector<TokenChunk>& chunks) {
  std::vector<Document> waiting;
  size_t tokens = 0;
  const auto flush = [&] {
    if (waiting.empty()) return;
    TokenChunk chunk{.batch = to_device(make_batch(waiting), device), .sequences = {}, .held_out = held_out};
    chunk.sequences = make_sequences(config, chunk.batch.positions, chunk.batch.cu_seqlens);
    chunks.push_back(std::move(chunk));
    waiting.clear();
    tokens = 0;
  };
  for (int64_t i = begin + group.rank(); i < end; i += group.world_size()) {
    const Document document = data.document(i);
    if (tokens + document.tokens.size() > kChunkTokens) flush();
    waiting.push_back(document);
    tokens += document.tokens.size();
  }
  flush();
}

}  // namespace

int64_t held_out_documents(int64_t documents, double share) {
  return std::clamp<int64_t>(static_cast<int64_t>(share * static_cast<double>(documents) + 0.5), 1, documents - 1);
}

std::vector<TokenChunk> load_token_chunks(const ModelConfig& config, const TokenShards& data, double held_out,
                                          at::Device device, const ProcessGroup& group) {
  if (data.size() < 2)
    fail_usage("calibration needs at least two documents, one of them held out; found {}", data.size());
  const int64_t fitted = data.size() - held_out_documents(data.size(), held_out);
  std::vector<TokenChunk> chunks;
  add_chunks(config, data, 0, fitted, false, device, group, chunks);
  add_chunks(config, data, fitted, data.size(), true, device, group, chunks);
  return chunks;
}

std::vector<at::Tensor> embed_chunks(const ModelConfig& config, const TensorSource& tensors,
                                     const std::vector<TokenChunk>& chunks) {
  std::vector<at::Tensor> streams;
  if (chunks.empty()) return streams;
  const at::Tensor embedding =
      read_tensor(tensors, "model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, at::kFloat,
                  chunks.front().batch.tokens.device());
  for (const TokenChunk& chunk : chunks) streams.push_back(embed(config, embedding, chunk.batch.tokens));
  return streams;
}

at::Tensor advance(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                   const at::Tensor& stream, const Sequences& sequences, Leaders& leaders) {
  const at::Tensor x = norm(config, stream, layer.input_norm);
  const at::Tensor heads = attention_heads(config, plan, index, layer, x, sequences, leaders);
  return add_mlp(config, layer, stream + attention_output(config, layer, heads, x));
}

LossHead::LossHead(const ModelConfig& config, const TensorSource& tensors, at::Device device)
    : config_(config),
      norm_(read_tensor(tensors, "model.norm.weight", {config.hidden_size}, at::kFloat, device)),
      head_(read_tensor(tensors, config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                        {config.vocab_size, config.hidden_size}, at::kFloat, device)) {}

double LossHead::mean_loss(const std::vector<TokenChunk>& chunks, const std::vector<at::Tensor>& streams,
                           ProcessGroup& group) const {
  double sum = 0;
  int64_t tokens = 0;
  auto stream = streams.begin();
  for (const TokenChunk& chunk : chunks) {
    if (!chunk.held_out) continue;
    const at::Tensor hidden = norm(config_, *stream++, norm_);
    const at::Tensor losses = linear_cross_entropy(hidden, head_, chunk.batch.labels, config_.final_softcap);
    sum += losses.sum(at::kDouble).item<double>();
    tokens += chunk.batch.supervised;
  }
  tokens = group.sum(tokens);
  if (tokens == 0) fail("the held-out calibration documents have no supervised token");
  return group.sum(sum) / static_cast<double>(tokens);
}

double held_out_loss(const ModelConfig& config, const TensorSource& tensors, const SharingPlan& plan,
                     const NamedTensors& weights, const std::vector<TokenChunk>& all, ProcessGroup& group) {
  const at::NoGradGuard no_grad;
  std::vector<TokenChunk> chunks;
  std::ranges::copy_if(all, std::back_inserter(chunks), &TokenChunk::held_out);
  std::vector<at::Tensor> streams = embed_chunks(config, tensors, chunks);
  std::vector<Leaders> leaders(chunks.size());
  const at::Device device = compute_device(group.local_rank());
  const std::map<std::string, at::Tensor> replaced(weights.begin(), weights.end());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer layer = read_layer(tensors, config, plan.layers[i], i, at::kFloat, device);
    for (const LayerSlot& slot : layer_slots(config, plan.layers[i], i))
      if (const auto found = replaced.find(slot.name); found != replaced.end()) layer.*slot.member = found->second;
    for (size_t c = 0; c < chunks.size(); ++c)
      streams[c] = advance(config, plan, i, layer, streams[c], chunks[c].sequences, leaders[c]);
  }
  return LossHead(config, tensors, device).mean_loss(chunks, streams, group);
}

}  // namespace uniattn
