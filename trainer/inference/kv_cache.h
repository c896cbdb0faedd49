// The keys and values of all sequences that are being generated, laid out by the plan: K and V for full layers, V alone
// for share_probs, none for the other modes. Layers with a window keep only what it shows.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "inference/page_table.h"
#include "model/config.h"

namespace uniattn {

// `tokens` more of a sequence, about to be read by the model.
struct SequenceSpan {
  int64_t sequence, tokens;
};

// Where the tokens of one forward pass lie in the layers with one window, which all read it.
struct CacheLayout {
  // The new tokens that stay (int64, undefined: all; others have left the window already), and where they go.
  at::Tensor kept, slots;
  // Decoding: int32 [batch, slots] and [batch], the new token included.
  at::Tensor page_table, lengths;
  int64_t max_length = 0;
  // Prefill: where the tokens before the new ones lie that these may see (undefined: there are none); how those and the
  // new ones, one after the other, become the keys of one sequence after the other (undefined: they are); cu_seqlens.
  at::Tensor past_slots, order, cu_seqlens_k;
};

// Cache bytes that one sequence of `tokens` holds, in whole pages.
int64_t cache_bytes(const ModelConfig& config, const SharingPlan& plan, int64_t tokens, int64_t bytes_per_element);

class KvCache {
 public:
  KvCache(const ModelConfig& config, const SharingPlan& plan, at::ScalarType dtype, at::Device device);

  // A new sequence without tokens.
  int64_t open();
  // Its pages go to other sequences.
  void close(int64_t sequence);
  int64_t length(int64_t sequence) const { return sequences_.at(sequence).length; }

  // Makes room for the spans and says, by window, where their tokens lie. A sequence appears once.
  std::map<int64_t, CacheLayout> begin(const std::vector<SequenceSpan>& spans, bool decoding);
  // The tokens of the spans are written.
  void end(const std::vector<SequenceSpan>& spans);

  // [pages, kv_heads, kPageSize, head_dim]; undefined where the layer keeps none.
  const at::Tensor& keys(int64_t layer) const { return layers_[layer].k; }
  const at::Tensor& values(int64_t layer) const { return layers_[layer].v; }
  int64_t window(int64_t layer) const { return layers_[layer].window; }

  // Of the pages that sequences hold, and of all that exist.
  int64_t bytes_used() const;
  int64_t bytes_allocated() const;

 private:
  struct LayerCache {
    int64_t window;
    at::Tensor k, v;
  };
  struct Sequence {
    int64_t length = 0;
    std::map<int64_t, std::vector<int32_t>> pages;  // by window
  };
  void grow(const PageTable& table);
  CacheLayout lay_out(const PageTable& table, const std::vector<SequenceSpan>& spans, bool decoding) const;

  at::Device device_;
  std::vector<LayerCache> layers_;
  std::map<int64_t, PageTable> tables_;  // by window
  std::map<int64_t, Sequence> sequences_;
  int64_t next_ = 0;
};

}  // namespace uniattn
