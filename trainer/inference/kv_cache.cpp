#include "inference/kv_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/footprint.h"
#include "model/layer.h"

namespace uniattn {
namespace {

at::Tensor on_device(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

at::Tensor bounds_of(const std::vector<int64_t>& counts, at::Device device) {
  std::vector<int32_t> bounds{0};
  for (const int64_t count : counts) bounds.push_back(bounds.back() + static_cast<int32_t>(count));
  return at::tensor(bounds, at::kInt).to(device);
}

int64_t page_bytes(const at::Tensor& cache) {
  return cache.defined() ? cache.stride(0) * cache.element_size() : 0;
}

}  // namespace

int64_t cache_bytes(const ModelConfig& config, const SharingPlan& plan, int64_t tokens, int64_t bytes_per_element) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const int64_t pages = pages_held(tokens, config.windows[plan.mask_layer(i)]);
    bytes += pages * kPageSize * layer_kv_bytes(config, plan.layers[i], bytes_per_element);
  }
  return bytes;
}

KvCache::KvCache(const ModelConfig& config, const SharingPlan& plan, at::ScalarType dtype, at::Device device)
    : device_(device) {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const LayerPlan& layer = plan.layers[i];
    const auto empty = [&](bool is_kept) {
      return is_kept ? at::empty({0, kv_heads(config, layer), kPageSize, config.head_dim}, options) : at::Tensor();
    };
    const int64_t window = config.windows[plan.mask_layer(i)];
    layers_.push_back(
        {window, empty(layer.mode == Mode::full), empty(layer.mode == Mode::full || layer.mode == Mode::share_probs)});
    if (layers_.back().v.defined()) tables_.try_emplace(window, window);
  }
}

int64_t KvCache::open() {
  sequences_[next_];
  return next_++;
}

void KvCache::close(int64_t sequence) {
  for (auto& [window, pages] : sequences_.at(sequence).pages) tables_.at(window).release(pages);
  sequences_.erase(sequence);
}

// Half as much again, so that copying stays a small share of all work; one layer after the other, so that no more than
// one is there twice.
void KvCache::grow(const PageTable& table) {
  for (LayerCache& layer : layers_) {
    if (layer.window != table.window()) continue;
    for (at::Tensor* cache : {&layer.k, &layer.v}) {
      if (!cache->defined() || cache->size(0) >= table.size()) continue;
      auto sizes = cache->sizes().vec();
      sizes[0] = std::max(table.size(), cache->size(0) + cache->size(0) / 2);
      const at::Tensor larger = at::empty(sizes, cache->options());
      larger.narrow(0, 0, cache->size(0)).copy_(*cache);
      *cache = larger;
    }
  }
}

std::map<int64_t, CacheLayout> KvCache::begin(const std::vector<SequenceSpan>& spans, bool decoding) {
  std::map<int64_t, CacheLayout> layouts;
  for (auto& [window, table] : tables_) {
    for (const SequenceSpan& span : spans) {
      Sequence& sequence = sequences_.at(span.sequence);
      table.extend(sequence.pages[window], sequence.length + span.tokens);
    }
    grow(table);
    layouts[window] = lay_out(table, spans, decoding);
  }
  return layouts;
}

void KvCache::end(const std::vector<SequenceSpan>& spans) {
  for (const SequenceSpan& span : spans) sequences_.at(span.sequence).length += span.tokens;
}

CacheLayout KvCache::lay_out(const PageTable& table, const std::vector<SequenceSpan>& spans, bool decoding) const {
  CacheLayout layout;
  std::vector<int64_t> kept, slots, past, past_counts, key_counts;
  int64_t token = 0, most_pages = 0;
  for (const SequenceSpan& span : spans) {
    const Sequence& sequence = sequences_.at(span.sequence);
    const std::vector<int32_t>& pages = sequence.pages.at(table.window());
    const int64_t end = sequence.length + span.tokens, first_held = table.first_held(end);
    for (int64_t position = sequence.length; position < end; ++position, ++token) {
      if (position < first_held) continue;
      kept.push_back(token);
      slots.push_back(PageTable::slot(pages, position));
    }
    most_pages = std::max(most_pages, static_cast<int64_t>(pages.size()));
    layout.max_length = std::max(layout.max_length, end);
    if (decoding) continue;
    const int64_t seen = table.window() > 0 ? std::min(sequence.length, table.window() - 1) : sequence.length;
    for (int64_t position = sequence.length - seen; position < sequence.length; ++position)
      past.push_back(PageTable::slot(pages, position));
    past_counts.push_back(seen);
    key_counts.push_back(seen + span.tokens);
  }
  layout.slots = on_device(slots, device_);
  if (static_cast<int64_t>(kept.size()) < token) layout.kept = on_device(kept, device_);
  if (decoding) {
    std::vector<int32_t> entries, lengths;
    for (const SequenceSpan& span : spans) {
      const Sequence& sequence = sequences_.at(span.sequence);
      const std::vector<int32_t>& pages = sequence.pages.at(table.window());
      entries.insert(entries.end(), pages.begin(), pages.end());
      entries.resize(entries.size() + static_cast<size_t>(most_pages) - pages.size(), -1);
      lengths.push_back(static_cast<int32_t>(sequence.length + span.tokens));
    }
    layout.page_table = at::tensor(entries, at::kInt).view({-1, most_pages}).to(device_);
    layout.lengths = at::tensor(lengths, at::kInt).to(device_);
    return layout;
  }
  layout.cu_seqlens_k = bounds_of(key_counts, device_);
  if (past.empty()) return layout;
  layout.past_slots = on_device(past, device_);
  if (spans.size() == 1) return layout;
  std::vector<int64_t> order;
  int64_t past_row = 0, new_row = static_cast<int64_t>(past.size());
  for (size_t s = 0; s < spans.size(); ++s) {
    for (int64_t i = 0; i < past_counts[s]; ++i) order.push_back(past_row++);
    for (int64_t i = 0; i < spans[s].tokens; ++i) order.push_back(new_row++);
  }
  layout.order = on_device(order, device_);
  return layout;
}

int64_t KvCache::bytes_used() const {
  int64_t bytes = 0;
  for (const LayerCache& layer : layers_)
    if (layer.v.defined()) bytes += tables_.at(layer.window).used() * (page_bytes(layer.k) + page_bytes(layer.v));
  return bytes;
}

int64_t KvCache::bytes_allocated() const {
  int64_t bytes = 0;
  for (const LayerCache& layer : layers_)
    for (const at::Tensor& cache : {layer.k, layer.v})
      if (cache.defined()) bytes += static_cast<int64_t>(cache.nbytes());
  return bytes;
}

}  // namespace uniattn
