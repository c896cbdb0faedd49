// Cross-entropy of rows of logits, each read once. A block takes one row at a time.
#pragma once
#include <cfloat>

#include "cuda/layers_params.h"
#include "cuda/math.cuh"
#include "cuda/vector.cuh"

namespace uniattn::cuda {

// Capped logits of a row from `column` on; minus infinity behind the vocabulary.
template <typename T, int kCount>
UNIATTN_DEVICE void load_logits(float (&x)[kCount], const Logits& logits, const Element<T>* row, int64_t column) {
  load_vector<T>(x, row + column);
  UNIATTN_UNROLL
  for (int i = 0; i < kCount; ++i) {
    x[i] = column + i < logits.vocabulary ? soft_capped(x[i], logits.softcap) : -INFINITY;
  }
}

// total = the sum of exp(x - maximum) over some numbers x.
struct ExponentialSum {
  float maximum = -FLT_MAX;  // not minus infinity: what is subtracted from numbers that may be infinite is finite
  float total = 0;

  template <int kCount>
  UNIATTN_DEVICE void add(const float (&x)[kCount]) {
    float top = maximum;
    UNIATTN_UNROLL
    for (int i = 0; i < kCount; ++i) top = fmaxf(top, x[i]);
    total *= exponential(maximum - top);
    UNIATTN_UNROLL
    for (int i = 0; i < kCount; ++i) total += exponential(x[i] - top);
    maximum = top;
  }
};

template <typename T>
struct CrossEntropy {
  using Args = CrossEntropyArgs;
  using Shared = BlockShared;

  static Grid grid(const Args& a) { return grid_of_rows(a.logits.rows); }

  UNIATTN_DEVICE static void run(const Args& a, Shared& shared) {
    for (int64_t row = block_x(); row < a.logits.rows; row += blocks_x()) reduce(a, row, shared);
  }

  UNIATTN_DEVICE static void reduce(const Args& a, int64_t row, Shared& shared) {
    const Element<T>* x = static_cast<const Element<T>*>(a.logits.data) + row * a.logits.stride;
    ExponentialSum own;
    for_own_columns<kPerWords<T>>(0, a.logits.vocabulary, [&](int64_t column) {
      float logits[kPerWords<T>];
      load_logits<T>(logits, a.logits, x, column);
      own.add(logits);
    });
    const float maximum = block_maximum(own.maximum, shared);
    const float total = block_sum(own.total * exponential(own.maximum - maximum), shared);
    if (thread_index() > 0) return;
    const int64_t token = a.logits.tokens[row];
    const float lse = maximum + logf(total);
    a.lse[token] = lse;
    a.loss[token] = lse - soft_capped(to_float<T>(x[a.logits.labels[token]]), a.logits.softcap);
  }
};

template <typename T>
struct CrossEntropyBackward {
  using Args = CrossEntropyBackwardArgs;
  struct Shared {};

  static Grid grid(const Args& a) { return grid_of_rows(a.logits.rows); }

  UNIATTN_DEVICE static void run(const Args& a, Shared&) {
    for (int64_t row = block_x(); row < a.logits.rows; row += blocks_x()) differentiate(a, row);
  }

  UNIATTN_DEVICE static void differentiate(const Args& a, int64_t row) {
    Element<T>* x = static_cast<Element<T>*>(a.logits.data) + row * a.logits.stride;
    const int64_t token = a.logits.tokens[row], label = a.logits.labels[token];
    const float grad = a.grad[token], lse = a.lse[token];
    for_own_columns<kPerWords<T>>(0, a.logits.vocabulary, [&](int64_t column) {
      float logits[kPerWords<T>];
      load_logits<T>(logits, a.logits, x, column);
      UNIATTN_UNROLL
      for (int i = 0; i < kPerWords<T>; ++i) {
        const float difference = exponential(logits[i] - lse) - (column + i == label ? 1 : 0);
        logits[i] = difference * softcap_slope(logits[i], a.logits.softcap) * grad;
      }
      store_vector<T>(x + column, logits);
    });
  }
};

}  // namespace uniattn::cuda
