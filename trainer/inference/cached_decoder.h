// The decoder over caches: reads the next tokens of some sequences and says what follows each.
#pragma once
#include <map>
#include <optional>
#include <vector>

#include "inference/kv_cache.h"
#include "model/attention.h"
#include "model/decoder.h"

namespace uniattn {

// The next tokens of one sequence.
struct TokenSpan {
  int64_t sequence;
  std::vector<int64_t> tokens;
};

class CachedDecoder {
 public:
  // The model must outlive this object and keep its weights.
  explicit CachedDecoder(const Decoder& model);

  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }

  // Reads the spans, none of them empty, and returns the logits [spans, vocab] that follow each, float32 on the CPU.
  // Spans of one token each that follow others take the decoding operators, all others those of prefill.
  at::Tensor read(const std::vector<TokenSpan>& spans);

 private:
  // One forward pass.
  struct Pass {
    bool decoding;
    Sequences sequences;  // cu_seqlens of the new tokens
    std::map<int64_t, CacheLayout> layouts;
    std::map<int64_t, at::Tensor> rows;  // decoding: P of the leaders
    struct Leader {
      at::Tensor q, k, v, lse;
      std::optional<at::Tensor> tiles;  // P, where its followers read it
    };
    std::map<int64_t, Leader> leaders;  // prefill
  };
  // Leaves of the pass only the rows `last`, the newest token of each span.
  void narrow(Pass& pass, const at::Tensor& last);
  at::Tensor attend(int64_t layer, const Projections& own, Pass& pass);
  at::Tensor prefill_layer(int64_t layer, const Projections& own, const CacheLayout& layout, Pass& pass);
  at::Tensor decode_layer(int64_t layer, const Projections& own, const CacheLayout& layout, Pass& pass);
  // Room for P of queries q over keys k, unless it takes more than kProbsBudget.
  std::optional<at::Tensor> take_tiles(const at::Tensor& q, const at::Tensor& k, int64_t window);
  // Makes the leader's tiles, if it has any, room for others.
  void give_back_tiles(Pass::Leader& leader);
  void append(int64_t layer, const Projections& own, const CacheLayout& layout);
  at::Tensor logits(const at::Tensor& last) const;

  const Decoder& model_;
  KvCache cache_;
  at::Tensor frequencies_;  // of the rotary embedding, [head_dim / 2]
  // Per layer: the layer whose cache it attends to, its options under its leader's mask, its head map; whether a
  // share_probs layer follows it, and one that reads P of all tokens of a prompt.
  struct LayerRole {
    int64_t source;
    AttentionOptions options;
    std::optional<at::Tensor> head_map;
    bool lends_probs, keeps_tiles;
    int64_t last_follower;
  };
  std::vector<LayerRole> roles_;
  int64_t last_cached_ = 0;  // the last layer that has a cache, 0 if none has
  // Tiles that no leader uses. Prefill fills them anew for every superblock: to get so much memory from the system each
  // time would cost as much as it saves. Decoding, which has no use for them, gives them back.
  std::vector<at::Tensor> spare_tiles_;
};

}  // namespace uniattn
