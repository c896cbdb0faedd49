#include "calibration/streams.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "calibration/scratch.h"
#include "data/loader.h"
#include "model/decoder.h"
#include "support/error.h"

namespace uniattn {
namespace {

constexpr size_t kChunkTokens = 4096;      // that run through a layer at once
constexpr int64_t kRankingTokens = 16384;  // that head maps are ranked on, and a quarter as many held out

// The end of the documents from `begin` on that have at least `tokens` tokens, or `end`.
int64_t documents_with(const TokenShards& data, int64_t begin, int64_t end, int64_t tokens) {
  for (; begin < end && tokens > 0; ++begin) tokens -= static_cast<int64_t>(data.document(begin).tokens.size());
  return begin;
}

}  // namespace

Streams::Streams(const ModelConfig& config, const TensorSource& tensors, const TokenShards& data, double held_out,
                 const std::string& directory, ProcessGroup& group, at::Device device)
    : config_(config), directory_(directory), device_(device) {
  if (data.size() < 2)
    fail_usage("calibration needs at least two documents, one of them held out; found {}", data.size());
  const int64_t held =
      std::clamp<int64_t>(static_cast<int64_t>(held_out * static_cast<double>(data.size()) + 0.5), 1, data.size() - 1);
  const int64_t fitted = data.size() - held;
  const int64_t ranking = documents_with(data, 0, fitted, kRankingTokens);
  const int64_t held_ranking = documents_with(data, fitted, data.size(), kRankingTokens / 4);
  const at::Tensor embedding =
      read_tensor(tensors, "model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, at::kFloat, device);
  add(data, 0, ranking, {.held_out = false, .ranking = true}, embedding, group);
  add(data, ranking, fitted, {.held_out = false, .ranking = false}, embedding, group);
  add(data, fitted, held_ranking, {.held_out = true, .ranking = true}, embedding, group);
  add(data, held_ranking, data.size(), {.held_out = true, .ranking = false}, embedding, group);
}

void Streams::add(const TokenShards& data, int64_t begin, int64_t end, Split split, const at::Tensor& embedding,
                  ProcessGroup& group) {
  std::vector<Document> waiting;
  size_t tokens = 0;
  auto flush = [&] {
    if (waiting.empty()) return;
    Chunk chunk;
    chunk.batch = to_device(make_batch(waiting), device_);
    chunk.held_out = split.held_out;
    chunk.ranking = split.ranking;
    chunk.sequences = make_sequences(config_, chunk.batch.positions, chunk.batch.cu_seqlens);
    const at::Tensor rows = embedding.index_select(0, chunk.batch.tokens.cpu()).to(device_, at::kFloat);
    chunk.base = chunk.unified = keep(embed(config_, rows, at::arange(rows.size(0), chunk.batch.tokens.options())));
    chunks_.push_back(std::move(chunk));
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

int64_t Streams::tokens(bool held_out) const {
  int64_t tokens = 0;
  for (const Chunk& chunk : chunks_)
    if (chunk.held_out == held_out) tokens += chunk.batch.tokens.size(0);
  return tokens;
}

at::Tensor Streams::keep(const at::Tensor& state) const {
  return directory_.empty() ? state : to_scratch(state, directory_);
}

void Streams::keep(LeaderState& state) const {
  if (!state.probs.empty()) {  // all handles show the same P
    const at::Tensor q = keep(state.probs.front().q), k = keep(state.probs.front().k);
    for (Probs& probs : state.probs) probs.q = q, probs.k = k;
  }
  if (state.k.defined()) state.k = keep(state.k), state.v = keep(state.v);
}

NamedTensors Streams::save() const {
  NamedTensors states;
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const Chunk& chunk = chunks_[i];
    const std::string name = std::to_string(i) + ".";
    states.emplace_back(name + "base", chunk.base);
    if (!chunk.unified.is_same(chunk.base)) states.emplace_back(name + "unified", chunk.unified);
    for (const auto& [leader, state] : chunk.leaders) {
      const std::string prefix = name + std::to_string(leader) + ".";
      if (!state.probs.empty()) {
        states.emplace_back(prefix + "probs_q", state.probs.back().q);
        states.emplace_back(prefix + "probs_k", state.probs.back().k);
      }
      if (!state.k.defined()) continue;
      states.emplace_back(prefix + "k", state.k);
      states.emplace_back(prefix + "v", state.v);
    }
  }
  return states;
}

void Streams::load(const NamedTensors& states) {
  const std::map<std::string, at::Tensor> by_name(states.begin(), states.end());
  for (size_t i = 0; i < chunks_.size(); ++i) {
    Chunk& chunk = chunks_[i];
    const std::string name = std::to_string(i) + ".";
    auto take = [&](const std::string& key) {
      const auto found = by_name.find(name + key);
      return found == by_name.end() ? at::Tensor() : keep(found->second.to(device_));
    };
    chunk.base = take("base");
    const at::Tensor unified = take("unified");
    chunk.unified = unified.defined() ? unified : chunk.base;
    for (int64_t leader = 0; leader < config_.num_layers; ++leader) {
      const std::string prefix = std::to_string(leader) + ".";
      LeaderState state{.probs = {}, .k = take(prefix + "k"), .v = take(prefix + "v")};
      const at::Tensor q = take(prefix + "probs_q"), k = take(prefix + "probs_k");
      // What P is made of comes out of another forward pass; its values do not matter.
      if (q.defined())
        state.probs =
            attention(q, k, k, chunk.sequences.cu_seqlens, 1, attention_options(config_, leader), false).probs;
      if (q.defined() || state.k.defined()) chunk.leaders[leader] = std::move(state);
    }
  }
}

}  // namespace uniattn
