// What the CUDA kernels are given: plain pointers and numbers. All tensors are contiguous and 16-byte aligned, in
// layout as in schema.cpp.
#pragma once
#include <cstdint>

namespace uniattn::cuda {

inline constexpr int kMaxLayers = 32;       // of a superblock: their pointers travel as kernel arguments
inline constexpr int kMaxTokens = 1 << 30;  // of a pack: positions are int

enum class Type { kFloat16, kBFloat16, kFloat32 };

// The leader's P = exp(score - lse) over a pack of sequences.
struct Pattern {
  Type type;  // of q, k and everything that is not a row statistic; not float32
  int head_dim;
  int tokens, keys;  // as many, but where the queries are the last tokens of their sequences alone: forward only
  int heads, kv_heads, sequences;
  const int32_t* cu_seqlens;       // [sequences + 1], of the queries
  const int32_t* cu_seqlens_keys;  // [sequences + 1]
  bool causal;
  int window;     // 0: off; at most `keys`
  float softcap;  // 0: off
  float scale;
  const void* q;     // [tokens, heads, head_dim]
  const void* k;     // [keys, kv_heads, head_dim]
  const float* lse;  // [heads, tokens]; null while the leader is about to compute it
};

// out = P v. The leader, whose pattern has no lse yet, writes it to new_lse.
struct ForwardArgs {
  Pattern pattern;
  const int64_t* head_map;  // [heads]; null: the identity
  const void* v;            // [keys, value_heads, head_dim]
  int value_heads;
  void* out;       // [tokens, heads, head_dim]
  float* new_lse;  // [heads, tokens], of the leader alone
};

// dv = P^T grad_out.
struct ValueBackwardArgs {
  Pattern pattern;
  const int64_t* head_map;  // [heads]; null: the identity
  const void* grad_out;     // [tokens, heads, head_dim]
  void* dv;                 // [tokens, kv_heads, head_dim]
};

// The query heads of all layers, head n of layer i being reader i * heads + n, sorted by the leader head that they
// read: those of leader head m are order[begin[m]] to order[begin[m + 1] - 1], the leader's own head first.
struct Readers {
  const int64_t* begin;  // [heads + 1]
  const int64_t* order;  // [layers * heads]
};

struct LayerGradient {
  const void* grad_out;  // [tokens, heads, head_dim]
  const void* v;         // [tokens, kv_heads, head_dim]
};

struct SuperblockBackwardArgs {
  Pattern pattern;
  Readers readers;
  LayerGradient layers[kMaxLayers];  // the leader first
  const float* delta;                // [heads, tokens], summed over the readers of each leader head
  void* dq;                          // [tokens, heads, head_dim]
  void* dk;                          // [tokens, kv_heads, head_dim]
  void* dv;                          // [tokens, kv_heads, head_dim], of the leader
};

// delta = rowsum(grad_out * out).
struct DeltaArgs {
  Type type;  // of out and grad_out
  int tokens, heads, head_dim;
  const void *grad_out, *out;  // [tokens, heads, head_dim], head_dim even
  float* delta;                // [heads, tokens]
};

// sum[m] = the sum of delta over the readers of leader head m, in their order.
struct DeltaSumArgs {
  int tokens, heads;
  Readers readers;
  const float* delta;  // [layers * heads, tokens]
  float* sum;          // [heads, tokens]
};

}  // namespace uniattn::cuda
