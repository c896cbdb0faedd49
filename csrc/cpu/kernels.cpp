#include "cpu/kernels.h"

#include <ATen/Version.h>

#include <string>

namespace uniattn::cpu {

namespace plain {
void fill_attention(Kernels& table);
void fill_layers(Kernels& table);
void fill_cross_entropy(Kernels& table);
}  // namespace plain
#if defined(__x86_64__)
namespace avx2 {
void fill_attention(Kernels& table);
void fill_layers(Kernels& table);
void fill_cross_entropy(Kernels& table);
}  // namespace avx2
namespace avx512 {
void fill_attention(Kernels& table);
void fill_layers(Kernels& table);
void fill_cross_entropy(Kernels& table);
}  // namespace avx512
#endif

namespace {

// The instruction set that PyTorch's own kernels run on, which ATEN_CPU_CAPABILITY can lower.
Kernels choose() {
  const std::string capability = at::get_cpu_capability();
  Kernels table{};
  plain::fill_attention(table);
  plain::fill_layers(table);
  plain::fill_cross_entropy(table);
#if defined(__x86_64__)
  if (capability == "AVX2") {
    avx2::fill_attention(table);
    avx2::fill_layers(table);
    avx2::fill_cross_entropy(table);
  } else if (capability == "AVX512") {
    avx512::fill_attention(table);
    avx512::fill_layers(table);
    avx512::fill_cross_entropy(table);
  }
#endif
  return table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = choose();
  return table;
}

}  // namespace uniattn::cpu
