// Tiles of rows in shared memory, and the two products that every kernel consists of.
//
// A block of four warps owns 64 rows, queries or keys, 16 per warp, and walks over tiles of the other side. A Fragment
// is what a warp holds in registers of a matrix with its 16 rows.
#pragma once
#include "cuda/block.cuh"

namespace uniattn::cuda {

inline constexpr int kOwnRows = 16 * kWarps;

// Rows of the other side per tile: fewer for wide heads, whose accumulators fill the registers.
constexpr int other_rows(int head_dim) {
  return head_dim > 128 ? 32 : 64;
}

// kRows rows of 16-bit elements. 16 bytes of padding put the same column of eight rows into different banks.
template <int kRows, int kHeadDim>
struct alignas(16) Tile {
  static constexpr int kStride = kHeadDim + 8;
  uint16_t data[kRows * kStride];

  UNIATTN_DEVICE const uint16_t* at(int row, int column) const { return data + row * kStride + column; }
  UNIATTN_DEVICE uint16_t* at(int row, int column) { return data + row * kStride + column; }
};

// One head of a tensor [tokens, heads, head_dim].
struct HeadRows {
  const uint16_t* data;
  int64_t stride;  // between tokens, in elements
  int tokens;
};

template <int kHeadDim>
UNIATTN_DEVICE HeadRows head_rows(const void* x, int tokens, int heads, int head) {
  return {static_cast<const uint16_t*>(x) + static_cast<int64_t>(head) * kHeadDim,
          static_cast<int64_t>(heads) * kHeadDim, tokens};
}

// Starts to copy rows first, first + 1, … into a tile; rows behind the last token become zeros.
template <int kRows, int kHeadDim>
UNIATTN_DEVICE void load_tile(Tile<kRows, kHeadDim>& tile, const HeadRows& source, int first) {
  constexpr int kElements = 8, kPerRow = kHeadDim / kElements;  // per copy of 16 bytes
  for (int i = thread_index(); i < kRows * kPerRow; i += kThreads) {
    const int row = i / kPerRow, column = i % kPerRow * kElements;
    const bool valid = first + row < source.tokens;
    const int64_t offset = valid ? (first + row) * source.stride + column : 0;
    copy_async(tile.at(row, column), source.data + offset, valid);
  }
}

// Columns come in groups of eight, each in the accumulator layout of mma: a thread holds rows lane / 4 and lane / 4 + 8
// (halves 0 and 1) of columns 2 (lane % 4) and the next.
template <int kColumns>
struct Fragment {
  float x[kColumns / 8][4];
};

// The row of the block's 64 that `half` of this thread's fragments belongs to.
UNIATTN_DEVICE int own_row(int half) {
  return thread_index() / 32 * 16 + thread_index() % 32 / 4 + 8 * half;
}

// Calls f(element, half, column) for each element that this thread holds.
template <int kColumns, typename F>
UNIATTN_DEVICE void for_each_element(Fragment<kColumns>& fragment, F f) {
  const int pair = thread_index() % 4 * 2;
  UNIATTN_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) {
    UNIATTN_UNROLL
    for (int i = 0; i < 4; ++i) f(fragment.x[n][i], i / 2, 8 * n + pair + i % 2);
  }
}

// The same for the elements of two fragments at a time.
template <int kColumns, typename F>
UNIATTN_DEVICE void for_each_element(Fragment<kColumns>& a, Fragment<kColumns>& b, F f) {
  const int pair = thread_index() % 4 * 2;
  UNIATTN_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) {
    UNIATTN_UNROLL
    for (int i = 0; i < 4; ++i) f(a.x[n][i], b.x[n][i], i / 2, 8 * n + pair + i % 2);
  }
}

// out += own other^T: the dot products of the warp's 16 rows of `own` with the rows of `other`.
template <typename T, int kRows, int kHeadDim>
UNIATTN_DEVICE void add_dot_products(Fragment<kRows>& out, const Tile<kOwnRows, kHeadDim>& own,
                                     const Tile<kRows, kHeadDim>& other) {
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  UNIATTN_UNROLL
  for (int k = 0; k < kHeadDim; k += 16) {
    uint32_t a[4];
    load_matrices(a, own.at(16 * warp + lane % 16, k + lane / 16 * 8));
    UNIATTN_UNROLL
    for (int n = 0; n < kRows; n += 16) {
      uint32_t b[4];
      load_matrices(b, other.at(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
      multiply_add<T>(out.x[n / 8], a, b[0], b[1]);
      multiply_add<T>(out.x[n / 8 + 1], a, b[2], b[3]);
    }
  }
}

// out += weights other, the weights rounded to T.
template <typename T, int kRows, int kHeadDim>
UNIATTN_DEVICE void add_weighted_rows(Fragment<kHeadDim>& out, const Fragment<kRows>& weights,
                                      const Tile<kRows, kHeadDim>& other) {
  const int lane = thread_index() % 32;
  UNIATTN_UNROLL
  for (int k = 0; k < kRows; k += 16) {
    // Two groups of accumulator columns are laid out as one left operand.
    const float(&left)[4] = weights.x[k / 8];
    const float(&right)[4] = weights.x[k / 8 + 1];
    const uint32_t a[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                           pack<T>(right[2], right[3])};
    UNIATTN_UNROLL
    for (int n = 0; n < kHeadDim; n += 16) {
      uint32_t b[4];
      load_matrices_transposed(b, other.at(k + lane % 16, n + lane / 16 * 8));
      multiply_add<T>(out.x[n / 8], a, b[0], b[1]);
      multiply_add<T>(out.x[n / 8 + 1], a, b[2], b[3]);
    }
  }
}

// Writes the block's rows first, first + 1, … of one head of out [tokens, heads, head_dim], row half h times factor[h].
template <typename T, int kHeadDim>
UNIATTN_DEVICE void store_rows(const Fragment<kHeadDim>& rows, const float (&factor)[2], void* out, int tokens,
                               int heads, int head, int first) {
  UNIATTN_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int token = first + own_row(half);
    if (token >= tokens) continue;
    const int64_t start = (static_cast<int64_t>(token) * heads + head) * kHeadDim + thread_index() % 4 * 2;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out) + start);
    UNIATTN_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      pairs[4 * n] = pack<T>(rows.x[n][2 * half] * factor[half], rows.x[n][2 * half + 1] * factor[half]);
    }
  }
}

}  // namespace uniattn::cuda
