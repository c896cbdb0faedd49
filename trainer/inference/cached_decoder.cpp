#include "inference/cached_decoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "uniattn/decode.h"

namespace uniattn {
namespace {

// [tokens, kv_heads, head_dim] of the tokens before the new ones and these.
at::Tensor with_past(const at::Tensor& cache, const at::Tensor& own, const CacheLayout& layout) {
  if (!layout.past_slots.defined()) return own;
  const at::Tensor all = at::cat({read_cache(cache, layout.past_slots), own});
  return layout.order.defined() ? all.index_select(0, layout.order) : all;
}

void write(const at::Tensor& cache, const at::Tensor& own, const CacheLayout& layout) {
  append_to_cache(cache, layout.kept.defined() ? own.index_select(0, layout.kept) : own, layout.slots);
}

}  // namespace

CachedDecoder::CachedDecoder(const Decoder& model)
    : model_(model),
      cache_(model.config, model.plan, model.embedding.scalar_type(), model.embedding.device()),
      frequencies_(inverse_frequencies(model.config).to(model.embedding.device())) {
  for (int64_t i = 0; i < model.config.num_layers; ++i) {
    if (cache_.values(i).defined()) last_cached_ = i;
  }
  for (int64_t i = 0; i < model.config.num_layers; ++i) {
    const LayerPlan& plan = model.plan.layers[i];
    std::vector<int64_t> readers = model.plan.followers_of(i);
    std::erase_if(readers, [&](int64_t layer) { return model.plan.layers[layer].mode != Mode::share_probs; });
    roles_.push_back({plan.leader >= 0 ? plan.leader : i, attention_options(model.config, model.plan.mask_layer(i)),
                      head_map_tensor(plan.head_map, model.embedding.device()), !readers.empty(),
                      !readers.empty() && readers.front() < last_cached_, model.plan.last_follower_of(i)});
  }
}

void CachedDecoder::append(int64_t layer, const Projections& own, const CacheLayout& layout) {
  if (own.k.defined()) write(cache_.keys(layer), own.k, layout);
  if (own.v.defined()) write(cache_.values(layer), own.v, layout);
}

at::Tensor CachedDecoder::decode_layer(int64_t layer, const Projections& own, const CacheLayout& layout, Pass& pass) {
  const LayerRole& role = roles_[layer];
  append(layer, own, layout);
  if (!own.q.defined()) {
    return decode_attend(pass.rows.at(role.source), cache_.values(layer), layout.page_table, layout.lengths,
                         role.head_map, role.options.window);
  }
  DecodeResult result = decode_attention(own.q, cache_.keys(role.source), cache_.values(role.source), layout.page_table,
                                         layout.lengths, layout.max_length, role.lends_probs, role.options);
  if (role.lends_probs) pass.rows[layer] = std::move(result.probs);
  return result.out;
}

std::optional<at::Tensor> CachedDecoder::take_tiles(const at::Tensor& q, const at::Tensor& k, int64_t window) {
  const int64_t elements = most_prefill_elements(q.size(0), k.size(0), window);
  // A GPU rebuilds P, as in training.
  if (!q.is_cpu() || q.size(1) * elements * q.element_size() > kProbsBudget) return std::nullopt;
  at::Tensor tiles;
  if (!spare_tiles_.empty()) {
    tiles = std::move(spare_tiles_.back());
    spare_tiles_.pop_back();
  }
  return tiles.defined() && tiles.size(1) >= elements ? tiles : at::empty({q.size(1), elements}, q.options());
}

void CachedDecoder::give_back_tiles(Pass::Leader& leader) {
  if (leader.tiles) spare_tiles_.push_back(*std::exchange(leader.tiles, std::nullopt));
}

at::Tensor CachedDecoder::prefill_layer(int64_t layer, const Projections& own, const CacheLayout& layout, Pass& pass) {
  const LayerRole& role = roles_[layer];
  const at::Tensor& bounds = pass.sequences.cu_seqlens;
  at::Tensor out;
  if (!own.q.defined()) {
    const Pass::Leader& leader = pass.leaders.at(role.source);
    out = prefill_attend(leader.q, leader.k, leader.lse, with_past(cache_.values(layer), own.v, layout), bounds,
                         layout.cu_seqlens_k, role.head_map, role.options, leader.tiles);
  } else if (role.source != layer) {
    const Pass::Leader& leader = pass.leaders.at(role.source);
    out = prefill_attention(own.q, leader.k, leader.v, bounds, layout.cu_seqlens_k, role.options).out;
  } else {
    Pass::Leader state{
        own.q, with_past(cache_.keys(layer), own.k, layout), with_past(cache_.values(layer), own.v, layout), {}, {}};
    if (role.keeps_tiles) state.tiles = take_tiles(own.q, state.k, role.options.window);
    PrefillResult result =
        prefill_attention(own.q, state.k, state.v, bounds, layout.cu_seqlens_k, role.options, state.tiles);
    state.lse = std::move(result.lse);
    if (role.last_follower >= 0) pass.leaders[layer] = std::move(state);
    out = std::move(result.out);
  }
  append(layer, own, layout);
  if (roles_[role.source].last_follower == layer) {
    give_back_tiles(pass.leaders.at(role.source));
    pass.leaders.erase(role.source);
  }
  return out;
}

void CachedDecoder::narrow(Pass& pass, const at::Tensor& last) {
  Sequences& sequences = pass.sequences;
  sequences = {at::arange(last.size(0) + 1, sequences.cu_seqlens.options()), sequences.cos.index_select(0, last),
               sequences.sin.index_select(0, last)};
  for (auto& [layer, leader] : pass.leaders) {
    leader.q = leader.q.index_select(0, last);
    leader.lse = leader.lse.index_select(1, last);
    give_back_tiles(leader);
  }
}

// Heads' outputs of the new tokens [tokens, heads, head_dim]; undefined for linear and skip.
at::Tensor CachedDecoder::attend(int64_t layer, const Projections& own, Pass& pass) {
  const Mode mode = model_.plan.layers[layer].mode;
  if (mode == Mode::linear || mode == Mode::skip) return {};
  const CacheLayout& layout = pass.layouts.at(cache_.window(layer));
  return pass.decoding ? decode_layer(layer, own, layout, pass) : prefill_layer(layer, own, layout, pass);
}

at::Tensor CachedDecoder::logits(const at::Tensor& last) const {
  at::Tensor out = uniattn::linear(norm(model_.config, last, model_.final_norm), model_.head).to(at::kFloat);
  if (const double cap = model_.config.final_softcap; cap > 0) out.div_(cap).tanh_().mul_(cap);
  return out.to(at::kCPU);
}

at::Tensor CachedDecoder::read(const std::vector<TokenSpan>& spans) {
  const at::InferenceMode inference;
  const at::Device device = model_.embedding.device();
  std::vector<SequenceSpan> extents;
  std::vector<int64_t> tokens, positions, ends;
  std::vector<int32_t> bounds{0};
  bool decoding = true;
  for (const TokenSpan& span : spans) {
    const auto count = static_cast<int64_t>(span.tokens.size());
    const int64_t length = cache_.length(span.sequence);
    decoding &= count == 1 && length > 0;
    extents.push_back({span.sequence, count});
    tokens.insert(tokens.end(), span.tokens.begin(), span.tokens.end());
    for (int64_t i = 0; i < count; ++i) positions.push_back(length + i);
    bounds.push_back(bounds.back() + static_cast<int32_t>(count));
    ends.push_back(bounds.back() - 1);
  }
  const at::Tensor cu_seqlens = at::tensor(bounds, at::kInt).to(device);
  Pass pass{decoding,
            make_sequences(frequencies_, at::tensor(positions, at::kLong).to(device), cu_seqlens),
            cache_.begin(extents, decoding),
            {},
            {}};
  if (decoding) spare_tiles_.clear();
  const ModelConfig& config = model_.config;
  at::Tensor stream = embed(config, model_.embedding, at::tensor(tokens, at::kLong).to(device));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Layer& layer = model_.layers[i];
    at::Tensor x = norm(config, stream, layer.input_norm);
    Projections own = project(config, layer, x, pass.sequences);
    if (i == last_cached_ && !decoding) {
      // No later layer caches anything of the other tokens, and nobody asks what follows them.
      const at::Tensor last = at::tensor(ends, at::kLong).to(device);
      narrow(pass, last);
      stream = stream.index_select(0, last), x = x.index_select(0, last);
      if (own.q.defined()) own.q = own.q.index_select(0, last);
    }
    const at::Tensor heads = attend(i, own, pass);
    stream = add_mlp(config, layer, stream + attention_output(config, layer, heads, x));
  }
  cache_.end(extents);
  return logits(stream);
}

}  // namespace uniattn
