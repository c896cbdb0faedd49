// Generation of one sequence with caches laid out by the plan: K and V for full layers, V alone for share_probs, none
// for the other modes.
#pragma once
#include <cstdint>
#include <vector>

#include "model/attention.h"
#include "model/decoder.h"

namespace uniattn {

class Generator {
 public:
  // Caches for `capacity` positions. The model must outlive this object.
  Generator(const Decoder& model, int64_t capacity);

  // Reads the prompt (at least one token, into empty caches) and returns the logits [vocab] that follow it, float32.
  at::Tensor prefill(const std::vector<int64_t>& tokens);
  // Reads one more token; the same result. Throws Error when the caches are full.
  at::Tensor step(int64_t token);

  int64_t length() const { return length_; }
  int64_t cache_bytes() const;

 private:
  // [kv_heads, capacity, head_dim]; undefined where the layer projects no such heads.
  struct Cache {
    at::Tensor k, v;
  };
  Projections project_into_cache(int64_t layer, const at::Tensor& x, const Sequences& sequences);
  at::Tensor logits(const at::Tensor& stream) const;
  at::Tensor probability_row(const at::Tensor& q, const at::Tensor& k) const;
  at::Tensor attention_row(int64_t layer, const Projections& newest, std::vector<at::Tensor>& rows) const;

  const Decoder& model_;
  int64_t capacity_, length_ = 0;
  std::vector<Cache> caches_;
};

struct GenerationOptions {
  int64_t max_new_tokens = 64;
  double temperature = 0;  // 0: greedy
  uint64_t seed = 0;
};

struct Generation {
  std::vector<int64_t> tokens;  // new ones only, without the stop token
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decode_steps = 0;
  int64_t cache_bytes = 0;
};

// Stops after max_new_tokens or at one of the model's end tokens. Throws UsageError for an empty prompt or ids outside
// the vocabulary.
Generation generate(const Decoder& model, const std::vector<int64_t>& prompt, const GenerationOptions& options);

}  // namespace uniattn
