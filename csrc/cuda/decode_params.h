// What the CUDA kernels of decoding are given. Tensors are contiguous, in layout as in uniattn/decode.h.
#pragma once
#include <cstdint>

#include "cuda/params.h"

namespace uniattn::cuda {

inline constexpr int kSplitColumns = 256;  // of a sequence's columns, the work of one block
inline constexpr int kHeadsPerBlock = 8;   // query heads that one block serves, of one KV head

// Where the tokens of the sequences lie in caches [pages, kv_heads, page_size, head_dim]. What only the device can see
// is checked there: a table or a length that is wrong ends the launch with an error that names it.
struct Pages {
  int batch, pages, page_size, slots;
  int window;                 // 0: off
  int max_length;             // of `lengths`
  int columns;                // of the pages that a sequence of max_length has in sight
  const int32_t* page_table;  // [batch, slots]
  const int32_t* lengths;     // [batch]
};

// What a split leaves of one query head; a split is kSplitColumns columns, `splits` cover Pages::columns.
struct Partial {
  int splits;
  float* out;      // [batch, heads, splits, head_dim], sums of weight times value
  float* maximum;  // [batch, heads, splits], the leader's: weights are exp(score - maximum)
  float* total;    // [batch, heads, splits], the leader's: sums of weights
};

struct DecodeLeaderArgs {
  Type type;  // of q and the caches
  int head_dim, heads, kv_heads;
  Pages pages;
  float softcap, scale;  // softcap 0: off
  const void* q;         // [batch, heads, head_dim]
  const void* k_cache;
  const void* v_cache;
  float* probs;  // [batch, heads, Pages::columns], gets the weights; null: nobody asks for them
  Partial partial;
};

struct DecodeFollowerArgs {
  Type type;  // of the cache
  int head_dim, heads, kv_heads;
  Pages pages;
  const float* probs;       // [batch, heads, Pages::columns]
  const int64_t* head_map;  // [heads]; null: the identity
  const void* v_cache;
  Partial partial;
};

// Brings the splits together; a leader's weights become probabilities.
struct DecodeMergeArgs {
  Type type;  // of out
  int head_dim, heads;
  Pages pages;
  Partial partial;  // maximum and total are null for a follower, whose weights are probabilities
  float* probs;     // [batch, heads, Pages::columns], or null
  void* out;        // [batch, heads, head_dim]
};

// Copies rows [tokens, kv_heads, row_bytes] to their slots of a cache, or back.
struct CacheRowsArgs {
  int64_t tokens, cache_slots;  // cache_slots: pages * page_size
  int kv_heads, page_size, row_bytes;
  const int64_t* slots;  // [tokens]
  void* cache;
  void* rows;
};

}  // namespace uniattn::cuda
