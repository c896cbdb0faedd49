// Who sees whom, and the score of a pair.
//
// Blocks own 64 consecutive tokens of the pack, whatever sequences these belong to: the tokens that one of them sees
// are an interval whose ends never fall from token to token, so those that a block sees are an interval too.
#pragma once
#include "cuda/math.cuh"
#include "cuda/params.h"
#include "cuda/tile.cuh"

namespace uniattn::cuda {

// Tokens [begin, end).
struct Span {
  int begin, end;
  UNIATTN_DEVICE bool contains(int token) const { return token >= begin && token < end; }
};

UNIATTN_DEVICE int larger(int a, int b) {
  return a > b ? a : b;
}
UNIATTN_DEVICE int smaller(int a, int b) {
  return a < b ? a : b;
}

// The number of a query's sequence.
UNIATTN_DEVICE int sequence_of(const Pattern& p, int query) {
  int first = 0, last = p.sequences - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (p.cu_seqlens[middle + 1] > query) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  return first;
}

// The tokens of a sequence. Never outside the pack, even if cu_seqlens is wrong.
UNIATTN_DEVICE Span tokens_of(const int32_t* cu_seqlens, int sequence, int tokens) {
  return {larger(cu_seqlens[sequence], 0), smaller(cu_seqlens[sequence + 1], tokens)};
}

// The keys that a query sees; none behind the last token. The last query of a sequence stands at its last key.
UNIATTN_DEVICE Span keys_of(const Pattern& p, int query) {
  if (query >= p.tokens) return {0, 0};
  const int sequence = sequence_of(p, query);
  const Span queries = tokens_of(p.cu_seqlens, sequence, p.tokens);
  const Span keys = tokens_of(p.cu_seqlens_keys, sequence, p.keys);
  const int own = query + keys.end - queries.end;
  return {p.window > 0 ? larger(keys.begin, own - p.window + 1) : keys.begin,
          p.causal ? smaller(own + 1, keys.end) : keys.end};
}

// The queries that see a key, where they are all tokens; none behind the last.
UNIATTN_DEVICE Span queries_of(const Pattern& p, int key) {
  if (key >= p.tokens) return {0, 0};
  const Span sequence = tokens_of(p.cu_seqlens, sequence_of(p, key), p.tokens);
  return {p.causal ? key : sequence.begin, p.window > 0 ? smaller(sequence.end, key + p.window) : sequence.end};
}

enum class Side { kQueries, kKeys };

template <Side kOwn>
UNIATTN_DEVICE Span seen_by(const Pattern& p, int token) {
  return kOwn == Side::kQueries ? keys_of(p, token) : queries_of(p, token);
}

// What the block that owns tokens first, first + 1, … sees, and what this thread's two rows see.
struct Sight {
  Span block, row[2];
};

template <Side kOwn>
UNIATTN_DEVICE Sight sight_of(const Pattern& p, int first) {
  return {{seen_by<kOwn>(p, first).begin, seen_by<kOwn>(p, smaller(first + kOwnRows, p.tokens) - 1).end},
          {seen_by<kOwn>(p, first + own_row(0)), seen_by<kOwn>(p, first + own_row(1))}};
}

// Options: softcap and scale.
template <typename Options>
UNIATTN_DEVICE float score(const Options& p, float dot_product) {
  return soft_capped(dot_product * p.scale, p.softcap);
}

// A row statistic [heads, tokens] of queries first, first + 1, …, for the columns of a fragment.
template <int kRows>
UNIATTN_DEVICE void load_statistic(float (&to)[kRows], const float* from, int head, int tokens, int first) {
  const int i = thread_index();
  if (i < kRows) to[i] = first + i < tokens ? from[static_cast<int64_t>(head) * tokens + first + i] : 0;
}

// The leader head that a follower's head reads. Never outside the leader, even if the map is wrong.
UNIATTN_DEVICE int leader_of(const int64_t* head_map, int head, int heads) {
  return head_map == nullptr ? head : larger(0, smaller(static_cast<int>(head_map[head]), heads - 1));
}

}  // namespace uniattn::cuda
