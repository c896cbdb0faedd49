#include "cpu/kernels.h"

#include <ATen/Version.h>

#include <string>

// One table per instruction set that cmake/CpuKernels.cmake builds.
#define UNIATTN_DECLARE_KERNELS(isa)            \
  namespace uniattn::cpu::isa {                 \
  void fill_attention(Kernels& table);          \
  void fill_attention_backward(Kernels& table); \
  void fill_layers(Kernels& table);             \
  void fill_cross_entropy(Kernels& table);      \
  void fill_decode(Kernels& table);             \
  void fill_streaming_linear(Kernels& table);   \
  void fill_double_linear(Kernels& table);      \
  static Kernels table() {                      \
    Kernels result{};                           \
    fill_attention(result);                     \
    fill_attention_backward(result);            \
    fill_layers(result);                        \
    fill_cross_entropy(result);                 \
    fill_decode(result);                        \
    fill_streaming_linear(result);              \
    fill_double_linear(result);                 \
    return result;                              \
  }                                             \
  }

UNIATTN_DECLARE_KERNELS(plain)
#if defined(__x86_64__)
UNIATTN_DECLARE_KERNELS(avx2)
UNIATTN_DECLARE_KERNELS(avx512)
UNIATTN_DECLARE_KERNELS(avx512_bf16)
#endif

namespace uniattn::cpu {
namespace {

// The instruction set that PyTorch's own kernels run on, which ATEN_CPU_CAPABILITY can lower.
Kernels choose() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return __builtin_cpu_supports("avx512bf16") ? avx512_bf16::table() : avx512::table();
  if (capability == "AVX2") return avx2::table();
#endif
  return plain::table();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = choose();
  return table;
}

}  // namespace uniattn::cpu
