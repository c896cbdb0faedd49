// x W^T in float64, for the sums of the calibration: where MKL runs its AVX2 code on a processor that has AVX-512, this
// is nearly twice as fast.
#include "cpu/kernels.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {

#if defined(__AVX512F__)
namespace {

constexpr int64_t kDepth = 256;  // of W that is packed at once: a strip of it stays in the second-level cache

// Rows [begin, begin + count) of W, `depth` of their elements from `first` on, by columns: [depth, count].
void pack_strip(const DoubleLinearArgs& args, int64_t begin, int64_t count, int64_t first, int64_t depth,
                double* packed) {
  for (int64_t j = 0; j < count; ++j) {
    const double* row = args.weight + (begin + j) * args.depth + first;
    for (int64_t p = 0; p < depth; ++p) packed[p * count + j] = row[p];
  }
}

void double_linear(const DoubleLinearArgs& args, int64_t begin, int64_t end) {
  alignas(64) double packed[kDepth * kDoubleStrip];
  for (; begin < end; begin += kDoubleStrip) {
    const int64_t count = end - begin < kDoubleStrip ? end - begin : kDoubleStrip;
    for (int64_t first = 0; first < args.depth; first += kDepth) {
      const int64_t depth = args.depth - first < kDepth ? args.depth - first : kDepth;
      pack_strip(args, begin, count, first, depth, packed);
      multiply<double, Layout::kRows>(args.x + first, args.depth, packed, count, args.out + begin, args.width,
                                      args.rows, count, depth, first > 0);
    }
  }
}

}  // namespace
#endif

void fill_double_linear([[maybe_unused]] Kernels& table) {
#if defined(__AVX512F__)
  table.double_linear = double_linear;
#endif
}

}  // namespace uniattn::cpu::UNIATTN_ISA
