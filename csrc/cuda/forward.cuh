// out = P v for the leader, which finds the log-sum-exp of each row on the way, and for its followers, which are given
// it.
#pragma once
#include <cmath>

#include "cuda/pattern.cuh"

namespace uniattn::cuda {

template <typename T, int kHeadDim>
struct Forward {
  using Args = ForwardArgs;
  static constexpr int kKeys = other_rows(kHeadDim);
  using Weights = Fragment<kKeys>;
  using Output = Fragment<kHeadDim>;
  struct Shared {
    Tile<kOwnRows, kHeadDim> q;
    Tile<kKeys, kHeadDim> k, v;
  };

  static Grid grid(const Args& a) { return {ceil_divide(a.pattern.tokens, kOwnRows), a.pattern.heads}; }

  // Per row half: P = exp(score - shift) / sum. A follower's shift is the lse, and its sum is never asked for.
  struct Softmax {
    float shift[2], sum[2];

    // Takes in the scores of more keys: out, the sum of exp(score - shift) v so far, gets the new shift.
    UNIATTN_DEVICE void update(Weights& scores, Output& out) {
      float top[2] = {shift[0], shift[1]};
      for_each_element(scores, [&](float& s, int half, int) { top[half] = fmaxf(top[half], s); });
      float factor[2];
      UNIATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(top[half], shuffle_xor(top[half], 1));
        top[half] = fmaxf(top[half], shuffle_xor(top[half], 2));
        // Nothing seen yet: any finite shift will do.
        factor[half] = top[half] == -INFINITY ? 1 : exponential(shift[half] - top[half]);
        sum[half] *= factor[half];
        shift[half] = top[half];
      }
      for_each_element(out, [&](float& o, int half, int) { o *= factor[half]; });
    }
    // Scores become exp(score - shift).
    UNIATTN_DEVICE void weigh(Weights& scores) {
      for_each_element(scores, [&](float& s, int half, int) {
        s = s == -INFINITY ? 0 : exponential(s - shift[half]);
        sum[half] += s;
      });
    }
    // The sums of the four threads that share a row are put together.
    UNIATTN_DEVICE void finish() {
      UNIATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        sum[half] += shuffle_xor(sum[half], 1);
        sum[half] += shuffle_xor(sum[half], 2);
      }
    }
  };

  UNIATTN_DEVICE static Softmax softmax(const Pattern& p, int leader, int first) {
    Softmax result{{-INFINITY, -INFINITY}, {0, 0}};
    UNIATTN_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int token = first + own_row(half);
      if (p.lse != nullptr && token < p.tokens) {
        result.shift[half] = p.lse[static_cast<int64_t>(leader) * p.tokens + token];
      }
    }
    return result;
  }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const Pattern& p = a.pattern;
    const int head = block_y(), leader = leader_of(a.head_map, head, p.heads);
    // Late queries see most keys: they come first, so that no multiprocessor is left with one at the end.
    const int first = (blocks_x() - 1 - block_x()) * kOwnRows;
    const Sight sight = sight_of<Side::kQueries>(p, first);
    const HeadRows k = head_rows<kHeadDim>(p.k, p.keys, p.kv_heads, leader / (p.heads / p.kv_heads));
    const HeadRows v = head_rows<kHeadDim>(a.v, p.keys, a.value_heads, head / (p.heads / a.value_heads));
    Softmax state = softmax(p, leader, first);
    Output out{};

    load_tile(shared.q, head_rows<kHeadDim>(p.q, p.tokens, p.heads, leader), first);
    load_tile(shared.k, k, sight.block.begin);
    commit_copies();
    load_tile(shared.v, v, sight.block.begin);
    commit_copies();
    for (int begin = sight.block.begin; begin < sight.block.end; begin += kKeys) {
      const int next = begin + kKeys;
      wait_for_copies<1>();
      sync_block();
      Weights weights{};
      add_dot_products<T>(weights, shared.q, shared.k);
      sync_block();
      if (next < sight.block.end) load_tile(shared.k, k, next);
      commit_copies();

      for_each_element(weights, [&](float& s, int half, int column) {
        s = sight.row[half].contains(begin + column) ? score(p, s) : -INFINITY;
      });
      if (p.lse == nullptr) state.update(weights, out);
      state.weigh(weights);

      wait_for_copies<1>();
      sync_block();
      add_weighted_rows<T>(out, weights, shared.v);
      sync_block();
      if (next < sight.block.end) load_tile(shared.v, v, next);
      commit_copies();
    }
    finish(a, state, out, head, first);
  }

  UNIATTN_DEVICE static void finish(const Args& a, Softmax& state, const Output& out, int head, int first) {
    const Pattern& p = a.pattern;
    float factor[2] = {1, 1};
    if (p.lse == nullptr) {
      state.finish();
      UNIATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        factor[half] = 1 / state.sum[half];
        const int token = first + own_row(half);
        if (token < p.tokens && thread_index() % 4 == 0) {
          a.new_lse[static_cast<int64_t>(head) * p.tokens + token] = state.shift[half] + logf(state.sum[half]);
        }
      }
    }
    store_rows<T>(out, factor, a.out, p.tokens, p.heads, head, first);
  }
};

}  // namespace uniattn::cuda
