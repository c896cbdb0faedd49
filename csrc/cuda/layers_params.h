// What the CUDA kernels of RMSNorm, rotary embedding, gated activation and cross-entropy are given. Tensors are
// contiguous but where a stride, in elements, says otherwise; `type` is that of everything that is void.
#pragma once
#include <cstdint>

#include "cuda/params.h"

namespace uniattn::cuda {

// y = x rstd (weight, or 1 + weight).
struct RmsNormArgs {
  Type type;
  int64_t rows, width;
  float eps;
  bool unit_offset;
  const void* x;       // [rows, width]
  const void* weight;  // [width]
  void* y;             // [rows, width]
  float* rstd;         // [rows], (mean(x^2) + eps)^-1/2
};

// dx, and the weight's gradient summed over the rows of each chunk.
struct RmsNormBackwardArgs {
  Type type;
  int64_t rows, width;
  int64_t chunks, chunk_rows;  // the last chunk may have fewer rows
  bool unit_offset;
  const void *grad, *x;  // [rows, width]
  const void* weight;    // [width]
  const float* rstd;     // [rows]
  void* dx;              // [rows, width]
  float* partial;        // [chunks, width]
};

// dweight = the sum of the chunks' partial gradients.
struct RmsNormWeightArgs {
  Type type;
  int64_t chunks, width;
  const float* partial;  // [chunks, width]
  void* dweight;         // [width]
};

// out = [a cos - b sin, b cos + a sin], a and b the halves of each head of x.
struct RotaryArgs {
  Type type;
  int64_t tokens, heads, half;
  int64_t token_stride, head_stride;  // of x
  const void* x;                      // [tokens, heads, 2 half]
  const float *cos, *sin;             // [tokens, half]
  void* out;                          // [tokens, heads, 2 half]
};

enum class Activation { kSilu, kGeluTanh };

// out = activation(gate) up.
struct GatedActivationArgs {
  Type type;
  Activation activation;
  int64_t count;  // of elements in each tensor
  const void *gate, *up;
  void* out;
};

struct GatedActivationBackwardArgs {
  Type type;
  Activation activation;
  int64_t count;
  const void *grad, *gate, *up;
  void *dgate, *dup;
};

// A chunk of logits, and to which tokens its rows belong.
struct Logits {
  int64_t rows, vocabulary;
  int64_t stride;         // between rows, of whole 16 bytes; what lies behind the vocabulary is of no account
  float softcap;          // 0: off
  void* data;             // [rows, vocabulary], aligned to 16 bytes
  const int64_t* tokens;  // [rows]: all of them different
  const int64_t* labels;  // [tokens]: those of the rows are in [0, vocabulary)
};

struct CrossEntropyArgs {
  Type type;
  Logits logits;
  float *loss, *lse;  // [tokens], written for the tokens of the rows; lse is that of the capped logits
};

// Puts the gradient of grad · loss with respect to the logits in their place.
struct CrossEntropyBackwardArgs {
  Type type;
  Logits logits;
  const float *grad, *lse;  // [tokens]
};

}  // namespace uniattn::cuda
