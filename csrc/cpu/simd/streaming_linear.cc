// x W^T for a few rows of x: W streams through the registers once, x stays in cache.
#include "cpu/kernels.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/tables.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

// Rows of x and of W whose products are summed together: their accumulators fill half of the registers.
#if defined(__AVX512F__)
constexpr int kRowsPerStep = 4, kColumnsPerStep = 4;
#else
constexpr int kRowsPerStep = 2, kColumnsPerStep = 4;
#endif

template <class T, int rows, int columns>
void step(const StreamingLinearArgs& args, int64_t row, int64_t column) {
  const T *x = static_cast<const T*>(args.x) + row * args.depth,
          *w = static_cast<const T*>(args.weight) + column * args.depth;
  Vec total[rows][columns] = {};
  add_products(x, w, args.depth, total);
  const bool rest = args.depth % Dot<T>::kStep != 0;
  T* out = static_cast<T*>(args.out) + row * args.width + column;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      float product = sum(total[i][j]);
      if (rest) product += rest_of_product(x + i * args.depth, w + j * args.depth, args.depth);
      store_one(out + i * args.width + j, product);
    }
  }
}

template <class T, int columns>
void all_rows(const StreamingLinearArgs& args, int64_t column) {
  int64_t row = 0;
  for (; row + kRowsPerStep <= args.rows; row += kRowsPerStep) step<T, kRowsPerStep, columns>(args, row, column);
  for (; row < args.rows; ++row) step<T, 1, columns>(args, row, column);
}

template <class T>
void streaming_linear_of(const StreamingLinearArgs& args, int64_t begin, int64_t end) {
  for (; begin + kColumnsPerStep <= end; begin += kColumnsPerStep) all_rows<T, kColumnsPerStep>(args, begin);
  for (; begin < end; ++begin) all_rows<T, 1>(args, begin);
}

void streaming_linear(const StreamingLinearArgs& args, int64_t begin, int64_t end) {
  args.type == Type::kFloat32 ? streaming_linear_of<float>(args, begin, end)
                              : streaming_linear_of<BFloat16>(args, begin, end);
}

}  // namespace

void fill_streaming_linear(Kernels& table) {
  table.streaming_linear = streaming_linear;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
