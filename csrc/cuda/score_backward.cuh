// The gradient of a superblock's scores, carried on to q (by blocks that own queries) or to k and the leader's v (by
// blocks that own keys).
//
// For each tile of the other side a block adds up dP over the readers of the leader's head, and only then restores P:
// once per tile, however many layers share it. The leader's own head is the last reader, so its grad_out is still at
// hand for dV.
#pragma once
#include "cuda/pattern.cuh"

namespace uniattn::cuda {

// Wider heads leave no registers for dK and dV at once; their dV is ValueBackward's.
constexpr bool accumulates_dv(int head_dim) {
  return head_dim <= 128;
}

template <typename T, int kHeadDim, Side kOwn>
struct ScoreBackward {
  using Args = SuperblockBackwardArgs;
  static constexpr bool kOwnsQueries = kOwn == Side::kQueries;
  static constexpr bool kValueToo = !kOwnsQueries && accumulates_dv(kHeadDim);
  static constexpr int kOther = other_rows(kHeadDim);
  using Weights = Fragment<kOther>;

  // A reader's grad_out and v: the factors of its share of dP.
  struct Factors {
    Tile<kOwnRows, kHeadDim> own;
    Tile<kOther, kHeadDim> other;
  };
  struct Shared {
    Tile<kOwnRows, kHeadDim> own;  // q or k
    Tile<kOther, kHeadDim> other;  // k or q
    Factors factors[2];            // in use and on their way
    float lse[kOther], delta[kOther];
  };
  struct Gradients {
    Fragment<kHeadDim> own, value;  // of q or k; of v where kValueToo
  };
  // Row statistics of this thread's rows, where these are queries.
  struct RowStatistics {
    float lse[2], delta[2];
  };
  // A reader's share of one tile: the walk goes over leader heads, tiles and readers, the leader's own head last.
  struct Step {
    int head, begin;
    int64_t reader;
  };

  static Grid grid(const Args& a) {
    return {ceil_divide(a.pattern.tokens, kOwnRows), kOwnsQueries ? a.pattern.heads : a.pattern.kv_heads};
  }

  UNIATTN_DEVICE static Step first_step(const Args& a, int head, int begin) {
    return {head, begin, a.readers.begin[head + 1] - 1};
  }
  UNIATTN_DEVICE static bool is_first_of_tile(const Args& a, const Step& step) {
    return step.reader == a.readers.begin[step.head + 1] - 1;
  }
  UNIATTN_DEVICE static bool is_last_of_tile(const Args& a, const Step& step) {
    return step.reader == a.readers.begin[step.head];
  }
  // The step after `step`; its head is last_head + 1 at the end.
  UNIATTN_DEVICE static Step advance(const Args& a, const Step& step, const Span& block, int last_head) {
    if (!is_last_of_tile(a, step)) return {step.head, step.begin, step.reader - 1};
    if (step.begin + kOther < block.end) return first_step(a, step.head, step.begin + kOther);
    if (step.head < last_head) return first_step(a, step.head + 1, block.begin);
    return {last_head + 1, 0, 0};
  }

  UNIATTN_DEVICE static void load_factors(const Args& a, Factors& to, const Step& step, int first) {
    const Pattern& p = a.pattern;
    const int reader = static_cast<int>(a.readers.order[step.reader]);
    const LayerGradient& layer = a.layers[reader / p.heads];
    const int head = reader % p.heads;
    const HeadRows grad_out = head_rows<kHeadDim>(layer.grad_out, p.tokens, p.heads, head);
    const HeadRows v = head_rows<kHeadDim>(layer.v, p.tokens, p.kv_heads, head / (p.heads / p.kv_heads));
    load_tile(to.own, kOwnsQueries ? grad_out : v, first);
    load_tile(to.other, kOwnsQueries ? v : grad_out, step.begin);
  }

  // The other side's part of the scores: k, or q with its row statistics.
  UNIATTN_DEVICE static void load_other(const Args& a, Shared& shared, const Step& step) {
    const Pattern& p = a.pattern;
    if constexpr (kOwnsQueries) {
      load_tile(shared.other, head_rows<kHeadDim>(p.k, p.tokens, p.kv_heads, step.head / (p.heads / p.kv_heads)),
                step.begin);
    } else {
      load_tile(shared.other, head_rows<kHeadDim>(p.q, p.tokens, p.heads, step.head), step.begin);
      load_statistic(shared.lse, p.lse, step.head, p.tokens, step.begin);
      load_statistic(shared.delta, a.delta, step.head, p.tokens, step.begin);
    }
  }

  UNIATTN_DEVICE static RowStatistics row_statistics(const Args& a, int head, int first) {
    RowStatistics rows{};
    if constexpr (kOwnsQueries) {
      UNIATTN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int token = first + own_row(half);
        if (token >= a.pattern.tokens) continue;
        const int64_t at = static_cast<int64_t>(head) * a.pattern.tokens + token;
        rows.lse[half] = a.pattern.lse[at];
        rows.delta[half] = a.delta[at];
      }
    }
    return rows;
  }

  // Adds what a tile of the other side contributes, given its dP.
  UNIATTN_DEVICE static void add_tile(const Pattern& p, const Shared& shared, const Factors& leaders_own,
                                      const Sight& sight, const RowStatistics& rows, int begin, Weights& dp,
                                      Gradients& gradients) {
    Weights weights{};
    add_dot_products<T>(weights, shared.own, shared.other);
    for_each_element(weights, dp, [&](float& w, float& d, int half, int column) {
      const float s = score(p, w);
      const float lse = kOwnsQueries ? rows.lse[half] : shared.lse[column];
      const float delta = kOwnsQueries ? rows.delta[half] : shared.delta[column];
      w = sight.row[half].contains(begin + column) ? exponential(s - lse) : 0;
      d = w * (d - delta) * softcap_slope(s, p.softcap);
    });
    if constexpr (kValueToo) add_weighted_rows<T>(gradients.value, weights, leaders_own.other);
    add_weighted_rows<T>(gradients.own, dp, shared.other);
  }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const Pattern& p = a.pattern;
    const int per_group = p.heads / p.kv_heads;
    const int first_head = kOwnsQueries ? block_y() : block_y() * per_group;
    const int last_head = kOwnsQueries ? first_head : first_head + per_group - 1;
    // The blocks with the longest walks come first.
    const int first = (kOwnsQueries ? blocks_x() - 1 - block_x() : block_x()) * kOwnRows;
    const Sight sight = sight_of<kOwn>(p, first);
    const RowStatistics rows = row_statistics(a, first_head, first);
    Gradients gradients{};
    Weights dp{};

    load_tile(shared.own,
              kOwnsQueries ? head_rows<kHeadDim>(p.q, p.tokens, p.heads, first_head)
                           : head_rows<kHeadDim>(p.k, p.tokens, p.kv_heads, block_y()),
              first);
    Step step = first_step(a, first_head, sight.block.begin);
    load_factors(a, shared.factors[0], step, first);
    commit_copies();
    for (int stage = 0; step.head <= last_head && step.begin < sight.block.end; stage ^= 1) {
      const Step next = advance(a, step, sight.block, last_head);
      if (is_first_of_tile(a, step)) load_other(a, shared, step);
      if (next.head <= last_head) load_factors(a, shared.factors[stage ^ 1], next, first);
      commit_copies();
      wait_for_copies<1>();
      sync_block();
      add_dot_products<T>(dp, shared.factors[stage].own, shared.factors[stage].other);
      if (is_last_of_tile(a, step)) {
        wait_for_copies<0>();
        sync_block();
        add_tile(p, shared, shared.factors[stage], sight, rows, step.begin, dp, gradients);
        dp = {};
      }
      sync_block();
      step = next;
    }
    store(a, gradients, first);
  }

  UNIATTN_DEVICE static void store(const Args& a, const Gradients& gradients, int first) {
    const Pattern& p = a.pattern;
    const int heads = kOwnsQueries ? p.heads : p.kv_heads;
    store_rows<T>(gradients.own, {p.scale, p.scale}, kOwnsQueries ? a.dq : a.dk, p.tokens, heads, block_y(), first);
    if constexpr (kValueToo) store_rows<T>(gradients.value, {1, 1}, a.dv, p.tokens, heads, block_y(), first);
  }
};

}  // namespace uniattn::cuda
