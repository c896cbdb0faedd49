#include "inference/generator.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "support/error.h"

namespace uniattn {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Writes [T, kv_heads, head_dim] behind the `length` positions that the cache holds.
void append(const at::Tensor& cache, const at::Tensor& heads, int64_t length) {
  cache.narrow(1, length, heads.size(0)).copy_(heads.transpose(0, 1));
}

int64_t choose(const at::Tensor& logits, double temperature, std::mt19937_64& random) {
  if (temperature == 0) return logits.argmax().item<int64_t>();
  const at::Tensor cumulative = at::softmax(logits.to(at::kDouble) / temperature, 0).cumsum(0).to(at::kCPU);
  const double draw = static_cast<double>(random() >> 11) * 0x1.0p-53 * cumulative[-1].item<double>();
  const double* begin = cumulative.const_data_ptr<double>();
  return std::min(std::upper_bound(begin, begin + cumulative.size(0), draw) - begin, cumulative.size(0) - 1);
}

}  // namespace

Generator::Generator(const Decoder& model, int64_t capacity) : model_(model), capacity_(capacity) {
  const ModelConfig& config = model.config;
  for (const LayerPlan& plan : model.plan.layers) {
    const auto empty = [&] {
      return at::empty({config.num_kv_heads, capacity, config.head_dim},
                       model.embedding.options().requires_grad(false));
    };
    caches_.push_back({plan.mode == Mode::full ? empty() : at::Tensor(), empty()});
  }
}

int64_t Generator::cache_bytes() const {
  int64_t bytes = 0;
  for (const Cache& cache : caches_) bytes += (cache.k.defined() ? cache.k.nbytes() : 0) + cache.v.nbytes();
  return bytes;
}

at::Tensor Generator::logits(const at::Tensor& stream) const {
  const at::Tensor last = norm(model_.config, stream.narrow(0, stream.size(0) - 1, 1), model_.final_norm);
  at::Tensor out = uniattn::linear(last, model_.head).squeeze(0).to(at::kFloat);
  if (const double cap = model_.config.final_softcap; cap > 0) out = (out / cap).tanh() * cap;
  return out;
}

at::Tensor Generator::prefill(const std::vector<int64_t>& tokens) {
  const at::NoGradGuard no_grad;
  const auto count = static_cast<int64_t>(tokens.size());
  if (length_ + count > capacity_) fail("the prompt has {} tokens, the caches hold {}", count, capacity_);
  const ModelConfig& config = model_.config;
  const at::Device device = model_.embedding.device();
  const at::Tensor positions = at::arange(count, at::kLong).to(device);
  const at::Tensor cu_seqlens = at::tensor({int32_t{0}, static_cast<int32_t>(count)}, at::kInt).to(device);
  const Sequences sequences = make_sequences(config, positions, cu_seqlens);
  at::Tensor stream = embed(config, model_.embedding, at::tensor(tokens, at::kLong).to(device));
  std::vector<Probs> probs(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Layer& layer = model_.layers[i];
    const LayerPlan& plan = model_.plan.layers[i];
    const at::Tensor x = norm(config, stream, layer.input_norm);
    const at::Tensor v = value_heads(config, x, layer.v);
    append(caches_[i].v, v, 0);
    at::Tensor heads;
    if (plan.mode == Mode::full) {
      const at::Tensor k = rotated_heads(config, x, layer.k, sequences);
      append(caches_[i].k, k, 0);
      AttentionResult result = attention(rotated_heads(config, x, layer.q, sequences), k, v, cu_seqlens,
                                         model_.plan.leads(i) ? 1 : 0, attention_options(config, i));
      heads = result.out;
      if (!result.probs.empty()) probs[i] = std::move(result.probs.front());
    } else {
      heads = attend(probs[plan.leader], v, head_map_tensor(plan, device));
    }
    stream = add_mlp(config, layer, stream + attention_output(config, layer, heads, x));
  }
  length_ = count;
  return logits(stream);
}

// Heads' outputs [1, heads, head_dim] of the newest token. A full layer leaves its row of P [heads, cached] in
// rows[layer] for its followers.
at::Tensor Generator::attention_row(int64_t layer, const at::Tensor& x, const Sequences& sequences,
                                    std::vector<at::Tensor>& rows) {
  const ModelConfig& config = model_.config;
  const Layer& weights = model_.layers[layer];
  const LayerPlan& plan = model_.plan.layers[layer];
  const int64_t window = config.windows[layer];
  const int64_t begin = window > 0 ? std::max<int64_t>(0, length_ + 1 - window) : 0, count = length_ + 1 - begin;
  append(caches_[layer].v, value_heads(config, x, weights.v), length_);
  at::Tensor row;
  if (plan.mode == Mode::full) {
    append(caches_[layer].k, rotated_heads(config, x, weights.k, sequences), length_);
    const at::Tensor q =
        rotated_heads(config, x, weights.q, sequences).view({config.num_kv_heads, -1, config.head_dim});
    at::Tensor scores =
        at::bmm(q, caches_[layer].k.narrow(1, begin, count).transpose(1, 2)).to(at::kFloat) * config.attention_scale;
    if (const double cap = config.attention_softcap; cap > 0) scores = (scores / cap).tanh() * cap;
    row = at::softmax(scores, -1).to(q.scalar_type()).view({config.num_heads, count});
    rows[layer] = row;
  } else {
    row = rows[plan.leader];
    if (const auto map = head_map_tensor(plan, x.device())) row = row.index_select(0, *map);
  }
  return at::bmm(row.view({config.num_kv_heads, -1, count}), caches_[layer].v.narrow(1, begin, count))
      .view({1, config.num_heads, config.head_dim});
}

at::Tensor Generator::step(int64_t token) {
  const at::NoGradGuard no_grad;
  if (length_ == capacity_) fail("the caches are full: they hold {} tokens", capacity_);
  const ModelConfig& config = model_.config;
  const at::Device device = model_.embedding.device();
  const Sequences sequences = make_sequences(config, at::full({1}, length_, at::kLong).to(device), {});
  at::Tensor stream = embed(config, model_.embedding, at::full({1}, token, at::kLong).to(device));
  std::vector<at::Tensor> rows(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Layer& layer = model_.layers[i];
    const at::Tensor x = norm(config, stream, layer.input_norm);
    stream = add_mlp(config, layer, stream + attention_output(config, layer, attention_row(i, x, sequences, rows), x));
  }
  ++length_;
  return logits(stream);
}

Generation generate(const Decoder& model, const std::vector<int64_t>& prompt, const GenerationOptions& options) {
  if (prompt.empty()) fail_usage("the prompt is empty; give at least one token");
  for (const int64_t id : prompt)
    if (id < 0 || id >= model.config.vocab_size)
      fail_usage("token id {} is outside the vocabulary of {}", id, model.config.vocab_size);
  std::mt19937_64 random(options.seed);
  Generator generator(model, static_cast<int64_t>(prompt.size()) + options.max_new_tokens);
  Generation result{.tokens = {}, .cache_bytes = generator.cache_bytes()};
  auto start = Clock::now();
  at::Tensor logits = generator.prefill(prompt);
  result.prefill_seconds = seconds_since(start);
  start = Clock::now();
  const auto& ends = model.config.eos_ids;
  while (static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens) {
    const int64_t token = choose(logits, options.temperature, random);
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) break;
    result.tokens.push_back(token);
    if (static_cast<int64_t>(result.tokens.size()) == options.max_new_tokens) break;
    logits = generator.step(token);
    ++result.decode_steps;
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace uniattn
