// Copies of one tile of a head in the layouts that matrix products read; see cpu/kernels.h.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/gemm.h"

namespace uniattn::cpu::UNIATTN_ISA {

// Float rows from either type.
template <class T>
void pack_float_rows(const PackArgs& args, const Tile& tile, const T* source, float* out) {
  for (int64_t t = 0; t < tile.count; ++t) {
    for (int64_t c = 0; c < args.head_dim; c += kLanes) {
      store(out + t * args.head_dim + c, load(source + t * args.token_stride + c));
    }
  }
}

template <class T>
void pack_float_columns(const PackArgs& args, const Tile& tile, const T* source, float* out) {
  const int64_t width = padded(tile.count);
  for (int64_t t = 0; t < width; t += kLanes) {
    for (int64_t c = 0; c < args.head_dim; c += kLanes) {
      Int square[kLanes] = {};
      for (int64_t i = 0; i < kLanes && t + i < tile.count; ++i) {
        square[i] = reinterpret_cast<Int>(load(source + (t + i) * args.token_stride + c));
      }
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store_words(out + (c + i) * width + t, square[i]);
    }
  }
}

template <class T>
void pack_float(const PackArgs& args, const Tile& tile, const T* source, float* out) {
  args.packing == Packing::kColumns ? pack_float_columns(args, tile, source, out)
                                    : pack_float_rows(args, tile, source, out);
}

#if defined(__AVX512BF16__)
inline void pack_bfloat16(const PackArgs& args, const Tile& tile, const BFloat16* source, BFloat16* out) {
  const int64_t d = args.head_dim, stride = args.token_stride, width = padded(tile.count);
  if (args.packing == Packing::kRows) {
    for (int64_t t = 0; t < tile.count; ++t) {
      for (int64_t c = 0; c < d; c += 2 * kLanes) store_words(out + t * d + c, load_words(source + t * stride + c));
    }
  } else if (args.packing == Packing::kPaired) {
    for (int64_t t = 0; t < tile.count; t += 2) {
      for (int64_t c = 0; c < d; c += kLanes) {
        const Bits first = load_bits(source + t * stride + c);
        const Bits second = t + 1 < tile.count ? load_bits(source + (t + 1) * stride + c) : Bits{};
        store_words(out + t * d + 2 * c, reinterpret_cast<Int>(first | (second << 16)));
      }
    }
  } else {  // the pairs of a row are words already: a transposition of words
    for (int64_t t = 0; t < width; t += kLanes) {
      for (int64_t c = 0; c < d; c += 2 * kLanes) {
        Int square[kLanes] = {};
        for (int64_t i = 0; i < kLanes && t + i < tile.count; ++i)
          square[i] = load_words(source + (t + i) * stride + c);
        transpose(square);
        for (int64_t i = 0; i < kLanes; ++i) store_words(out + ((c / 2 + i) * width + t) * 2, square[i]);
      }
    }
  }
}
#endif

inline void pack(const PackArgs& args, const Tile& tile, void* packed) {
  const int64_t skip = tile.begin * args.token_stride, offset = tile.offset * args.head_dim;
  const auto* floats = static_cast<const float*>(args.source) + skip;
  const auto* halves = static_cast<const BFloat16*>(args.source) + skip;
#if defined(__AVX512BF16__)
  if (args.packed == Type::kBFloat16) return pack_bfloat16(args, tile, halves, static_cast<BFloat16*>(packed) + offset);
#endif
  float* out = static_cast<float*>(packed) + offset;
  args.type == Type::kFloat32 ? pack_float(args, tile, floats, out) : pack_float(args, tile, halves, out);
}

template <class T>
void unpack_to(const float* rows, const Tile& tile, int64_t head_dim, float factor, T* out, int64_t stride) {
  for (int64_t t = 0; t < tile.count; ++t) {
    for (int64_t c = 0; c < head_dim; c += kLanes) store(out + t * stride + c, load(rows + t * head_dim + c) * factor);
  }
}

// `rows` [tile.count, head_dim] times factor, to the tile's tokens of a head that starts at `out`.
inline void write_tile(const float* rows, const Tile& tile, int64_t head_dim, float factor, Type type, void* out,
                       int64_t stride) {
  const int64_t skip = tile.begin * stride;
  type == Type::kFloat32 ? unpack_to(rows, tile, head_dim, factor, static_cast<float*>(out) + skip, stride)
                         : unpack_to(rows, tile, head_dim, factor, static_cast<BFloat16*>(out) + skip, stride);
}

inline void unpack(const float* packed, const Tile& tile, int64_t head_dim, float factor, Type type, void* out,
                   int64_t stride) {
  write_tile(packed + tile.offset * head_dim, tile, head_dim, factor, type, out, stride);
}

// A float32 tile [rows][width] as the operand A of a product of elements E, by rows or paired. A float tile is one as
// it stands; bfloat16 goes to `buffer`, which may be a float tile itself because writing stays behind reading.
inline const float* as_rows(const float* tile, int64_t, int64_t, float*) {
  return tile;
}
inline const float* as_paired(const float* tile, int64_t, int64_t, float*) {
  return tile;
}

inline const BFloat16* as_rows(const float* tile, int64_t rows, int64_t width, BFloat16* buffer) {
  for (int64_t i = 0; i < rows * width; i += kLanes) store(buffer + i, load(tile + i));
  return buffer;
}
inline const BFloat16* as_paired(const BFloat16* tile, int64_t rows, int64_t width, BFloat16* buffer) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const Bits first = load_bits(tile + i * width + j);
      const Bits second = i + 1 < rows ? load_bits(tile + (i + 1) * width + j) : Bits{};
      store_words(buffer + i * width + 2 * j, reinterpret_cast<Int>(first | (second << 16)));
    }
  }
  return buffer;
}
inline const BFloat16* as_paired(const float* tile, int64_t rows, int64_t width, BFloat16* buffer) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec first = load(tile + i * width + j), second = i + 1 < rows ? load(tile + (i + 1) * width + j) : Vec{};
      store_words(buffer + i * width + 2 * j, paired(first, second));
    }
  }
  return buffer;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
