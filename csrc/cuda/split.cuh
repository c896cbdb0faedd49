// One block's share of a decoding step: a split of one sequence's columns, for some query heads of one KV head.
//
// Memory traffic is all that decoding costs, so there are no tensor cores here: a row of the cache is read once, 16
// bytes per thread, by as few threads as its head_dim needs, and serves every query head of the block.
#pragma once
#include <cmath>

#include "cuda/block.cuh"
#include "cuda/decode_params.h"
#include "cuda/vector.cuh"

namespace uniattn::cuda {

inline int splits_of(const Pages& p) {
  return ceil_divide(p.columns, kSplitColumns);
}

// Which split of which heads a block has.
struct Share {
  int sequence, kv_head, first_head, heads, split;

  static Grid grid(const Pages& p, int heads, int kv_heads) {
    return {p.batch * kv_heads * ceil_divide(heads / kv_heads, kHeadsPerBlock), splits_of(p)};
  }
  UNIATTN_DEVICE static Share of_block(int heads, int kv_heads) {
    const int per_group = heads / kv_heads, parts = (per_group + kHeadsPerBlock - 1) / kHeadsPerBlock;
    const int part = block_x() % parts, group = block_x() / parts;
    const int rest = per_group - part * kHeadsPerBlock, kv_head = group % kv_heads;
    return {group / kv_heads, kv_head, kv_head * per_group + part * kHeadsPerBlock,
            rest < kHeadsPerBlock ? rest : kHeadsPerBlock, block_y()};
  }
};

// The positions that a sequence's newest token sees, and the one in column 0, the first of its page.
struct DecodeSight {
  int column_0, begin, end;
};

UNIATTN_DEVICE DecodeSight decode_sight(const Pages& p, int sequence) {
  const int length = p.lengths[sequence];
  require(length > 0 && length <= p.max_length, "lengths must be from 1 to max_length");
  const int begin = p.window > 0 && p.window < length ? length - p.window : 0;
  const int first_page = begin / p.page_size, pages = (length - 1) / p.page_size + 1 - first_page;
  require(pages <= p.slots, "page_table has fewer slots than the newest token sees pages");
  require(static_cast<int64_t>(pages) * p.page_size <= p.columns, "probs has fewer columns than lengths need");
  return {first_page * p.page_size, begin, length};
}

template <typename T, int kVector>
struct SplitBlock {
  // Columns of head_dim that are taken at once: by a warp where they are that many.
  static constexpr int kChunk = 32 * kVector;
  static constexpr int kAtOnce = 4;  // rows per thread, to have as many reads under way

  struct Shared {
    int64_t row[kSplitColumns];  // each column's first element in the cache, without its head_dim; -1: not seen
    float weights[kHeadsPerBlock][kSplitColumns];
    alignas(16) float chunk[kHeadsPerBlock][kChunk];  // of q, then of the result
  };

  // Threads that share a row, a power of two, and where this thread is among them.
  struct Lanes {
    int count, row, column;
    UNIATTN_DEVICE int rows() const { return kThreads / count; }
  };
  UNIATTN_DEVICE static Lanes lanes(int head_dim) {
    int count = 2;
    while (count < 32 && count * kVector < head_dim) count *= 2;
    return {count, thread_index() / count, thread_index() % count * kVector};
  }

  UNIATTN_DEVICE static void find_rows(const Pages& p, const DecodeSight& sight, const Share& share, int kv_heads,
                                       Shared& shared) {
    const int first = sight.column_0 + share.split * kSplitColumns;
    for (int i = thread_index(); i < kSplitColumns; i += kThreads) {
      const int position = first + i;
      shared.row[i] = -1;
      if (position < sight.begin || position >= sight.end) continue;
      const int page = p.page_table[static_cast<int64_t>(share.sequence) * p.slots + position / p.page_size % p.slots];
      require(page >= 0 && page < p.pages, "page_table has an entry that is no page of the cache");
      shared.row[i] = (static_cast<int64_t>(page) * kv_heads + share.kv_head) * p.page_size + position % p.page_size;
    }
    sync_block();
  }

  // Calls f(column, x) for the columns of this thread, with its part of the row in the cache: zeros where it is not
  // seen and behind head_dim. The threads of a warp take their columns in step.
  template <typename F>
  UNIATTN_DEVICE static void for_each_row(const Shared& shared, const Lanes& lanes, const void* cache, int head_dim,
                                          int first, F f) {
    const Element<T>* data = static_cast<const Element<T>*>(cache) + first + lanes.column;
    const bool inside = first + lanes.column < head_dim;
    for (int column = lanes.row; column < kSplitColumns; column += kAtOnce * lanes.rows()) {
      float x[kAtOnce][kVector] = {};
      UNIATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = shared.row[column + i * lanes.rows()];
        if (inside && row >= 0) load_vector<T>(x[i], data + row * head_dim);
      }
      f(column, x);
    }
  }

  // shared.weights become the dot products of q [heads, head_dim] with the rows.
  UNIATTN_DEVICE static void multiply_keys(const void* q, const void* cache, int head_dim, int heads, Shared& shared) {
    const Lanes own = lanes(head_dim);
    for (int first = 0; first < head_dim; first += kChunk) {
      for (int i = thread_index(); i < heads * kChunk; i += kThreads) {
        const int head = i / kChunk, column = first + i % kChunk;
        shared.chunk[head][i % kChunk] =
            column < head_dim ? to_float<T>(static_cast<const Element<T>*>(q)[head * head_dim + column]) : 0;
      }
      sync_block();
      for_each_row(shared, own, cache, head_dim, first, [&](int column, const float(&x)[kAtOnce][kVector]) {
        for (int head = 0; head < heads; ++head) add_products(shared, own, column, head, x, first > 0);
      });
      sync_block();
    }
  }

  UNIATTN_DEVICE static void add_products(Shared& shared, const Lanes& own, int column, int head,
                                          const float (&x)[kAtOnce][kVector], bool add) {
    float sum[kAtOnce] = {}, q[kVector];
    load_vector<float>(q, shared.chunk[head] + own.column);
    UNIATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      UNIATTN_UNROLL
      for (int j = 0; j < kVector; ++j) sum[i] += x[i][j] * q[j];
    }
    for (int mask = own.count / 2; mask > 0; mask /= 2) {
      UNIATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) sum[i] += shuffle_xor(sum[i], mask);
    }
    if (own.column > 0) return;
    UNIATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      float& to = shared.weights[head][column + i * own.rows()];
      to = add ? to + sum[i] : sum[i];
    }
  }

  // The sums of weight times row; those of the block's n-th head go to out + n * stride.
  UNIATTN_DEVICE static void multiply_values(const void* cache, int head_dim, int heads, Shared& shared, float* out,
                                             int64_t stride) {
    const Lanes own = lanes(head_dim);
    for (int first = 0; first < head_dim; first += kChunk) {
      float sum[kHeadsPerBlock][kVector] = {};
      for_each_row(shared, own, cache, head_dim, first, [&](int column, const float(&x)[kAtOnce][kVector]) {
        UNIATTN_UNROLL
        for (int head = 0; head < kHeadsPerBlock; ++head) {
          UNIATTN_UNROLL
          for (int i = 0; head < heads && i < kAtOnce; ++i) {
            const float weight = shared.weights[head][column + i * own.rows()];
            UNIATTN_UNROLL
            for (int j = 0; j < kVector; ++j) sum[head][j] += weight * x[i][j];
          }
        }
      });
      add_rows(own, heads, sum, shared);
      for (int i = thread_index(); i < heads * kChunk; i += kThreads) {
        const int head = i / kChunk, column = first + i % kChunk;
        if (column < head_dim) out[head * stride + column] = shared.chunk[head][i % kChunk];
      }
      sync_block();
    }
  }

  // shared.chunk becomes the sum of what the block's threads have for the same columns, in an order that never changes.
  UNIATTN_DEVICE static void add_rows(const Lanes& own, int heads, float (&sum)[kHeadsPerBlock][kVector],
                                      Shared& shared) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    UNIATTN_UNROLL
    for (int head = 0; head < kHeadsPerBlock; ++head) {
      if (head >= heads) break;
      for (int mask = own.count; mask < 32; mask *= 2) {
        UNIATTN_UNROLL
        for (int j = 0; j < kVector; ++j) sum[head][j] += shuffle_xor(sum[head][j], mask);
      }
    }
    for (int turn = 0; turn < kWarps; ++turn) {
      if (warp == turn && lane < own.count) {
        UNIATTN_UNROLL
        for (int head = 0; head < kHeadsPerBlock; ++head) {
          if (head >= heads) break;
          UNIATTN_UNROLL
          for (int j = 0; j < kVector; ++j) {
            float& to = shared.chunk[head][own.column + j];
            to = turn > 0 ? to + sum[head][j] : sum[head][j];
          }
        }
      }
      sync_block();
    }
  }
};

}  // namespace uniattn::cuda
