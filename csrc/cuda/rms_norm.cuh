// RMSNorm. Rows are read twice, the second time from a cache.
#pragma once
#include "cuda/layers_params.h"
#include "cuda/vector.cuh"

namespace uniattn::cuda {

template <typename T, int kCount>
UNIATTN_DEVICE void load_norm_scale(float (&scale)[kCount], const void* weight, int64_t column, bool unit_offset) {
  load_vector<T>(scale, static_cast<const Element<T>*>(weight) + column);
  UNIATTN_UNROLL
  for (int i = 0; i < kCount; ++i) scale[i] += unit_offset ? 1 : 0;
}

// A block takes one row at a time.
template <typename T, int kVector>
struct RmsNorm {
  using Args = RmsNormArgs;
  using Shared = BlockShared;

  static Grid grid(const Args& a) { return grid_of_rows(a.rows); }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    for (int64_t row = block_x(); row < a.rows; row += blocks_x()) normalize(a, row, shared);
  }

  UNIATTN_DEVICE static void normalize(const Args& a, int64_t row, Shared& shared) {
    const Element<T>* x = static_cast<const Element<T>*>(a.x) + row * a.width;
    Element<T>* y = static_cast<Element<T>*>(a.y) + row * a.width;
    float squares = 0;
    for_own_columns<kVector>(0, a.width, [&](int64_t column) {
      float value[kVector];
      load_vector<T>(value, x + column);
      UNIATTN_UNROLL
      for (int i = 0; i < kVector; ++i) squares += value[i] * value[i];
    });
    const float rstd = 1 / sqrtf(block_sum(squares, shared) / static_cast<float>(a.width) + a.eps);
    if (thread_index() == 0) a.rstd[row] = rstd;
    for_own_columns<kVector>(0, a.width, [&](int64_t column) {
      float value[kVector], scale[kVector];
      load_vector<T>(value, x + column);
      load_norm_scale<T>(scale, a.weight, column, a.unit_offset);
      UNIATTN_UNROLL
      for (int i = 0; i < kVector; ++i) value[i] *= rstd * scale[i];
      store_vector<T>(y + column, value);
    });
  }
};

// A block takes one chunk of rows, in panels of columns whose part of the weight's gradient it keeps: all columns but
// for very wide rows, whose mean is computed anew for each panel.
template <typename T, int kVector>
struct RmsNormBackward {
  using Args = RmsNormBackwardArgs;
  static constexpr int kPanel = 8192;
  struct Shared {
    alignas(16) float dweight[kPanel];  // a thread reads what it has written itself
    BlockShared sum;
  };

  static Grid grid(const Args& a) { return {static_cast<int>(a.chunks), 1}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const int64_t begin = block_x() * a.chunk_rows;
    const int64_t end = begin + a.chunk_rows < a.rows ? begin + a.chunk_rows : a.rows;
    for (int64_t panel = 0; panel < a.width; panel += kPanel) {
      const int64_t panel_end = panel + kPanel < a.width ? panel + kPanel : a.width;
      for (int64_t row = begin; row < end; ++row) add_row(a, row, panel, panel_end, row == begin, shared);
      for_own_columns<kVector>(panel, panel_end, [&](int64_t column) {
        float sum[kVector];
        load_vector<float>(sum, shared.dweight + (column - panel));
        store_vector<float>(a.partial + block_x() * a.width + column, sum);
      });
    }
  }

  // dx of a row's columns [begin, end), and their share of the weight's gradient.
  UNIATTN_DEVICE static void add_row(const Args& a, int64_t row, int64_t begin, int64_t end, bool first,
                                     Shared& shared) {
    const Element<T>* x = static_cast<const Element<T>*>(a.x) + row * a.width;
    const Element<T>* grad = static_cast<const Element<T>*>(a.grad) + row * a.width;
    Element<T>* dx = static_cast<Element<T>*>(a.dx) + row * a.width;
    const float rstd = a.rstd[row];
    const float mean = block_sum(products(a, x, grad), shared.sum) * rstd / static_cast<float>(a.width);
    for_own_columns<kVector>(begin, end, [&](int64_t column) {
      float value[kVector], upstream[kVector], scale[kVector], sum[kVector] = {};
      load_vector<T>(value, x + column);
      load_vector<T>(upstream, grad + column);
      load_norm_scale<T>(scale, a.weight, column, a.unit_offset);
      if (!first) load_vector<float>(sum, shared.dweight + (column - begin));
      UNIATTN_UNROLL
      for (int i = 0; i < kVector; ++i) {
        const float normed = value[i] * rstd;
        sum[i] += upstream[i] * normed;
        value[i] = (upstream[i] * scale[i] - normed * mean) * rstd;
      }
      store_vector<float>(shared.dweight + (column - begin), sum);
      store_vector<T>(dx + column, value);
    });
  }

  // This thread's part of the sum of grad scale x.
  UNIATTN_DEVICE static float products(const Args& a, const Element<T>* x, const Element<T>* grad) {
    float sum = 0;
    for_own_columns<kVector>(0, a.width, [&](int64_t column) {
      float value[kVector], upstream[kVector], scale[kVector];
      load_vector<T>(value, x + column);
      load_vector<T>(upstream, grad + column);
      load_norm_scale<T>(scale, a.weight, column, a.unit_offset);
      UNIATTN_UNROLL
      for (int i = 0; i < kVector; ++i) sum += upstream[i] * scale[i] * value[i];
    });
    return sum;
  }
};

// A block takes as many columns as 32 bytes hold, a thread every sixteenth chunk of one of them.
template <typename T>
struct RmsNormWeight {
  using Args = RmsNormWeightArgs;
  static constexpr int kColumns = 8;
  struct Shared {
    float of_warp[kWarps][kColumns];
  };

  static Grid grid(const Args& a) { return {static_cast<int>((a.width + kColumns - 1) / kColumns), 1}; }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    const int thread = thread_index(), lane = thread % 32;
    const int64_t column = static_cast<int64_t>(block_x()) * kColumns + thread % kColumns;
    float sum = 0;
    for (int64_t i = thread / kColumns; i < a.chunks && column < a.width; i += kThreads / kColumns) {
      sum += a.partial[i * a.width + column];
    }
    for (int mask = kColumns; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
    if (lane < kColumns) shared.of_warp[thread / 32][lane] = sum;
    sync_block();
    if (thread >= kColumns || column >= a.width) return;
    for (int i = 1; i < kWarps; ++i) sum += shared.of_warp[i][thread];
    static_cast<Element<T>*>(a.dweight)[column] = from_float<T>(sum);
  }
};

}  // namespace uniattn::cuda
