// Decoding with a split cache: partial results per split, and a second pass that brings them together.
#pragma once
#include "cuda/pattern.cuh"
#include "cuda/split.cuh"

namespace uniattn::cuda {

// A block finds the weights of its heads, as Weights does, and sums values.
template <typename T, int kVector, typename Weights>
struct DecodeSplit {
  using Args = typename Weights::Args;
  using Split = SplitBlock<T, kVector>;
  using Shared = typename Split::Shared;

  static Grid grid(const Args& a) { return Share::grid(a.pages, a.heads, a.kv_heads); }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const Share share = Share::of_block(a.heads, a.kv_heads);
    const DecodeSight sight = decode_sight(a.pages, share.sequence);
    if (sight.column_0 + share.split * kSplitColumns >= sight.end) return;
    Split::find_rows(a.pages, sight, share, a.kv_heads, shared);
    const int64_t head = static_cast<int64_t>(share.sequence) * a.heads + share.first_head;
    Weights::find(a, share, head, shared);
    sync_block();
    Split::multiply_values(a.v_cache, a.head_dim, share.heads, shared,
                           a.partial.out + (head * a.partial.splits + share.split) * a.head_dim,
                           static_cast<int64_t>(a.partial.splits) * a.head_dim);
  }
};

// Scores by the key cache; `head` is the block's first, counted over all sequences.
template <typename T, int kVector>
struct LeaderWeights {
  using Args = DecodeLeaderArgs;
  using Split = SplitBlock<T, kVector>;
  using Shared = typename Split::Shared;

  UNIATTN_DEVICE static void find(const Args& a, const Share& share, int64_t head, Shared& shared) {
    const Element<T>* q = static_cast<const Element<T>*>(a.q) + head * a.head_dim;
    Split::multiply_keys(q, a.k_cache, a.head_dim, share.heads, shared);
    for (int i = thread_index() / 32; i < share.heads; i += kWarps) weigh(a, share, head + i, i, shared);
  }

  // One warp: the dot products of a head become exp(score - maximum).
  UNIATTN_DEVICE static void weigh(const Args& a, const Share& share, int64_t head, int i, Shared& shared) {
    const int lane = thread_index() % 32;
    float maximum = -INFINITY, total = 0;
    for (int column = lane; column < kSplitColumns; column += 32) {
      float& s = shared.weights[i][column];
      s = shared.row[column] < 0 ? -INFINITY : score(a, s);
      maximum = fmaxf(maximum, s);
    }
    maximum = warp_maximum(maximum);
    for (int column = lane; column < kSplitColumns; column += 32) {
      float& s = shared.weights[i][column];
      s = shared.row[column] < 0 ? 0 : exponential(s - maximum);
      total += s;
      const int to = share.split * kSplitColumns + column;
      if (a.probs != nullptr && to < a.pages.columns) a.probs[head * a.pages.columns + to] = s;
    }
    total = warp_sum(total);
    if (lane > 0) return;
    a.partial.maximum[head * a.partial.splits + share.split] = maximum;
    a.partial.total[head * a.partial.splits + share.split] = total;
  }
};

// The leader's rows, through the head map.
template <typename T, int kVector>
struct FollowerWeights {
  using Args = DecodeFollowerArgs;
  using Shared = typename SplitBlock<T, kVector>::Shared;

  UNIATTN_DEVICE static void find(const Args& a, const Share& share, int64_t, Shared& shared) {
    const int first = share.split * kSplitColumns;
    for (int i = thread_index(); i < share.heads * kSplitColumns; i += kThreads) {
      const int own = share.first_head + i / kSplitColumns, column = first + i % kSplitColumns;
      const int64_t leader = a.head_map == nullptr ? own : a.head_map[own];
      require(leader >= 0 && leader < a.heads, "head_map has an entry that is no head of the leader");
      const int64_t row = static_cast<int64_t>(share.sequence) * a.heads + leader;
      shared.weights[i / kSplitColumns][i % kSplitColumns] =
          column < a.pages.columns ? a.probs[row * a.pages.columns + column] : 0;
    }
  }
};

template <typename T, int kVector>
using DecodeLeader = DecodeSplit<T, kVector, LeaderWeights<T, kVector>>;
template <typename T, int kVector>
using DecodeFollower = DecodeSplit<T, kVector, FollowerWeights<T, kVector>>;

// A block has one head of one sequence.
template <typename T>
struct DecodeMerge {
  using Args = DecodeMergeArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return {a.pages.batch * a.heads, 1}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    const DecodeSight sight = decode_sight(a.pages, block_x() / a.heads);
    const int splits = (sight.end - sight.column_0 + kSplitColumns - 1) / kSplitColumns;
    const int64_t first = static_cast<int64_t>(block_x()) * a.partial.splits;
    const bool leads = a.partial.maximum != nullptr;
    float maximum = -INFINITY, total = 0;
    for (int i = 0; leads && i < splits; ++i) maximum = fmaxf(maximum, a.partial.maximum[first + i]);
    for (int i = 0; leads && i < splits; ++i) {
      total += a.partial.total[first + i] * exponential(a.partial.maximum[first + i] - maximum);
    }
    const auto factor = [&](int split) {
      return leads ? exponential(a.partial.maximum[first + split] - maximum) / total : 1;
    };

    Element<T>* out = static_cast<Element<T>*>(a.out) + static_cast<int64_t>(block_x()) * a.head_dim;
    for (int i = thread_index(); i < a.head_dim; i += kThreads) {
      float sum = 0;
      for (int split = 0; split < splits; ++split) {
        sum += factor(split) * a.partial.out[(first + split) * a.head_dim + i];
      }
      out[i] = from_float<T>(sum);
    }
    if (a.probs == nullptr) return;
    float* row = a.probs + static_cast<int64_t>(block_x()) * a.pages.columns;
    for (int i = thread_index(); i < a.pages.columns; i += kThreads) {
      row[i] = i < splits * kSplitColumns ? row[i] * factor(i / kSplitColumns) : 0;
    }
  }
};

}  // namespace uniattn::cuda
