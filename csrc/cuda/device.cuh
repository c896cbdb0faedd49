// All that the kernels ask of the hardware. The emulation that tests put in its place has the same functions.
#pragma once
#ifdef UNIATTN_EMULATED_DEVICE
#include "emulated_device.h"
#else
#include <cstdint>

#define UNIATTN_DEVICE __device__ __forceinline__
#define UNIATTN_UNROLL _Pragma("unroll")

// What assert() calls on a device; <cassert> leaves it out of release builds.
extern "C" __host__ __device__ void __assert_fail(const char* what, const char* file, unsigned line,
                                                  const char* function) noexcept __attribute__((__noreturn__));

namespace uniattn::cuda {

// Element types; their values are only ever seen by the functions below.
struct Float16 {};
struct BFloat16 {};

UNIATTN_DEVICE int thread_index() {
  return static_cast<int>(threadIdx.x);
}
UNIATTN_DEVICE int block_x() {
  return static_cast<int>(blockIdx.x);
}
UNIATTN_DEVICE int block_y() {
  return static_cast<int>(blockIdx.y);
}

UNIATTN_DEVICE int blocks_x() {
  return static_cast<int>(gridDim.x);
}

// Ends the launch with an error that says `what`: for arguments whose values only the device has seen.
UNIATTN_DEVICE void require(bool condition, const char* what) {
  if (!condition) __assert_fail(what, __FILE__, __LINE__, "uniattn");
}

UNIATTN_DEVICE void sync_block() {
  __syncthreads();
}

UNIATTN_DEVICE float shuffle_xor(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// 2^x with a relative error of about 2^-22; 0 where that is no normal number.
UNIATTN_DEVICE float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Two floats rounded to T, `low` in the lower half.
template <typename T>
UNIATTN_DEVICE uint32_t pack(float low, float high);
template <>
UNIATTN_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
UNIATTN_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <typename T>
UNIATTN_DEVICE float low_half(uint32_t pair);
template <>
UNIATTN_DEVICE float low_half<Float16>(uint32_t pair) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(pair)));
  return x;
}
template <>
UNIATTN_DEVICE float low_half<BFloat16>(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
template <typename T>
UNIATTN_DEVICE float high_half(uint32_t pair) {
  return low_half<T>(pair >> 16);
}

// c += a b for one warp (volatile, lest the compiler moves it into a branch that not all lanes take): a 16 x 16 by
// rows, b 16 x 8 by columns, c 16 x 8, in the fragment layouts of mma.m16n8k16.
template <typename T>
UNIATTN_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
UNIATTN_DEVICE void multiply_add<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
UNIATTN_DEVICE void multiply_add<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

UNIATTN_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ldmatrix.x4: four 8 x 8 matrices of 16-bit elements; lane 8 i + r points to row r of matrix i.
UNIATTN_DEVICE void load_matrices(uint32_t (&x)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}
UNIATTN_DEVICE void load_matrices_transposed(uint32_t (&x)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row))
               : "memory");
}

// Writes 16 bytes at once, to an address that is a multiple of them: nvcc may take a plain assignment apart.
UNIATTN_DEVICE void store_words(void* to, const uint32_t (&x)[4]) {
  asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
}

// Starts a copy of 16 bytes to shared memory, or of zeros when not valid.
UNIATTN_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// Closes the group of copies that this thread has started since the last one.
UNIATTN_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending groups of this thread are under way.
template <int kPending>
UNIATTN_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace uniattn::cuda
#endif
