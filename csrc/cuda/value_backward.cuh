// dv = P^T grad_out of one layer. A block owns keys and adds up the query heads of its group in their order.
#pragma once
#include "cuda/pattern.cuh"

namespace uniattn::cuda {

template <typename T, int kHeadDim>
struct ValueBackward {
  using Args = ValueBackwardArgs;
  static constexpr int kQueries = other_rows(kHeadDim);
  struct Shared {
    Tile<kOwnRows, kHeadDim> k;
    Tile<kQueries, kHeadDim> q, grad_out;
    float lse[kQueries];
  };

  static Grid grid(const Args& a) { return {ceil_divide(a.pattern.tokens, kOwnRows), a.pattern.kv_heads}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const Pattern& p = a.pattern;
    const int group = block_y(), per_group = p.heads / p.kv_heads;
    const int first = block_x() * kOwnRows;
    const Sight sight = sight_of<Side::kKeys>(p, first);
    Fragment<kHeadDim> dv{};
    for (int head = group * per_group; head < (group + 1) * per_group; ++head) {
      add_head(a, shared, sight, head, first, dv);
    }
    store_rows<T>(dv, {1, 1}, a.dv, p.tokens, p.kv_heads, group, first);
  }

  UNIATTN_DEVICE static void add_head(const Args& a, Shared& shared, const Sight& sight, int head, int first,
                                      Fragment<kHeadDim>& dv) {
    const Pattern& p = a.pattern;
    const int leader = leader_of(a.head_map, head, p.heads);
    const HeadRows q = head_rows<kHeadDim>(p.q, p.tokens, p.heads, leader);
    const HeadRows grad_out = head_rows<kHeadDim>(a.grad_out, p.tokens, p.heads, head);
    const HeadRows k = head_rows<kHeadDim>(p.k, p.tokens, p.kv_heads, leader / (p.heads / p.kv_heads));
    load_tile(shared.k, k, first);
    load_tile(shared.q, q, sight.block.begin);
    commit_copies();
    load_tile(shared.grad_out, grad_out, sight.block.begin);
    commit_copies();
    for (int begin = sight.block.begin; begin < sight.block.end; begin += kQueries) {
      const int next = begin + kQueries;
      load_statistic(shared.lse, p.lse, leader, p.tokens, begin);
      wait_for_copies<1>();
      sync_block();
      Fragment<kQueries> weights{};
      add_dot_products<T>(weights, shared.k, shared.q);
      for_each_element(weights, [&](float& s, int half, int column) {
        s = sight.row[half].contains(begin + column) ? exponential(score(p, s) - shared.lse[column]) : 0;
      });
      sync_block();
      if (next < sight.block.end) load_tile(shared.q, q, next);
      commit_copies();

      wait_for_copies<1>();
      sync_block();
      add_weighted_rows<T>(dv, weights, shared.grad_out);
      sync_block();
      if (next < sight.block.end) load_tile(shared.grad_out, grad_out, next);
      commit_copies();
    }
  }
};

}  // namespace uniattn::cuda
