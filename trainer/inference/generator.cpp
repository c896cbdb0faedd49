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

// Writes [T, kv_heads, head_dim], if there are any, behind the `length` positions that the cache holds.
void append(const at::Tensor& cache, const at::Tensor& heads, int64_t length) {
  if (heads.defined()) cache.narrow(1, length, heads.size(0)).copy_(heads.transpose(0, 1));
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
  const auto options = model.embedding.options().requires_grad(false);
  for (int64_t i = 0; i < model.config.num_layers; ++i) {
    const Layer& layer = model.layers[i];
    const auto empty = [&] {
      return at::empty({kv_heads(model.config, model.plan.layers[i]), capacity, model.config.head_dim}, options);
    };
    caches_.push_back({layer.k.defined() ? empty() : at::Tensor(), layer.v.defined() ? empty() : at::Tensor()});
  }
}

int64_t Generator::cache_bytes() const {
  size_t bytes = 0;
  for (const Cache& cache : caches_)
    for (const at::Tensor& tensor : {cache.k, cache.v}) bytes += tensor.defined() ? tensor.nbytes() : 0;
  return static_cast<int64_t>(bytes);
}

Projections Generator::project_into_cache(int64_t layer, const at::Tensor& x, const Sequences& sequences) {
  Projections projected = project(model_.config, model_.layers[layer], x, sequences);
  append(caches_[layer].k, projected.k, length_);
  append(caches_[layer].v, projected.v, length_);
  return projected;
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
  Leaders leaders;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Layer& layer = model_.layers[i];
    const at::Tensor x = norm(config, stream, layer.input_norm);
    const Projections projected = project_into_cache(i, x, sequences);
    const at::Tensor heads = attention_heads(config, model_.plan, i, projected, cu_seqlens, leaders);
    stream = add_mlp(config, layer, stream + attention_output(config, layer, heads, x));
  }
  length_ = count;
  return logits(stream);
}

// The newest token's row of P [heads, keys], from its q [1, heads, head_dim] and the visible keys [kv_heads, keys,
// head_dim].
at::Tensor Generator::probability_row(const at::Tensor& q, const at::Tensor& k) const {
  const ModelConfig& config = model_.config;
  const at::Tensor grouped = q.view({k.size(0), -1, config.head_dim});
  at::Tensor scores = at::bmm(grouped, k.transpose(1, 2)).to(at::kFloat) * config.attention_scale;
  if (const double cap = config.attention_softcap; cap > 0) scores = (scores / cap).tanh() * cap;
  return at::softmax(scores, -1).to(q.scalar_type()).view({config.num_heads, k.size(1)});
}

// Heads' outputs [1, heads, head_dim] of the newest token, which the caches hold already; undefined for linear and
// skip. A layer with queries of its own leaves its row of P in rows[layer] for its followers.
at::Tensor Generator::attention_row(int64_t layer, const Projections& newest, std::vector<at::Tensor>& rows) const {
  const ModelConfig& config = model_.config;
  const LayerPlan& plan = model_.plan.layers[layer];
  if (plan.mode == Mode::linear || plan.mode == Mode::skip) return {};
  const int64_t window = config.windows[model_.plan.mask_layer(layer)];
  const int64_t begin = window > 0 ? std::max<int64_t>(0, length_ + 1 - window) : 0, count = length_ + 1 - begin;
  const Cache& cache = caches_[plan.mode == Mode::share_kv ? plan.leader : layer];
  if (newest.q.defined()) {
    rows[layer] = probability_row(newest.q, cache.k.narrow(1, begin, count));
  } else {
    const auto map = head_map_tensor(plan.head_map, rows[plan.leader].device());
    rows[layer] = map ? rows[plan.leader].index_select(0, *map) : rows[plan.leader];
  }
  const at::Tensor v = cache.v.narrow(1, begin, count);
  return at::bmm(rows[layer].view({v.size(0), -1, count}), v).view({1, config.num_heads, config.head_dim});
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
    const at::Tensor heads = attention_row(i, project_into_cache(i, x, sequences), rows);
    stream = add_mlp(config, layer, stream + attention_output(config, layer, heads, x));
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
