// csrc/cuda/device.cuh without a GPU: every thread of a block is a fiber, and what a warp does together is done for its
// 32 lanes once the last of them has arrived, in the fragment layouts of the PTX ISA.
//
// It is meant to catch what hardware would punish only at times. Warps run one after the other, in either order, each
// until it has to wait for the others. Shared memory starts as NaN, and so does the target of an asynchronous copy
// until its own thread has waited for it. Lanes that do not arrive together, and misaligned addresses, are errors.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#define UNIATTN_DEVICE inline
#define UNIATTN_UNROLL

namespace uniattn::cuda {

using Float16 = c10::Half;
using BFloat16 = c10::BFloat16;

namespace emulation {

inline constexpr int kLanes = 32;
enum class WarpOrder { kForward, kBackward };

struct Position {
  int x, y, blocks_x;
};

struct Fiber;

// One block of threads at a time.
class Block {
 public:
  explicit Block(int threads);
  ~Block();
  // Runs body() on every thread; throws std::logic_error when the threads break a rule.
  void run(const std::function<void()>& body, Position position, WarpOrder order);

  // For the running thread.
  int thread() const { return running_; }
  const Position& position() const { return position_; }
  void sync();
  // operation(operands of the 32 lanes), once they are all here.
  using Operation = void (*)(void* const* operands);
  void together(Operation operation, void* operands);
  void start_copy(void* to, const void* from, bool valid);
  void commit_copies();
  void wait_for_copies(size_t pending);
  void require(bool condition, const char* what);

  static Block* current;

 private:
  friend struct Fiber;
  bool run_ready_lanes(int warp);
  void leave_fiber();
  static void enter_fiber();

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<int> arrived_;  // per warp
  std::function<void()> body_;
  Position position_{};
  int running_ = -1;
  std::string error_;
};

template <typename T>
float half_of(uint32_t pair, int half) {
  return T(static_cast<uint16_t>(pair >> (16 * half)), T::from_bits());
}

void load_matrices(void* const* operands);
void load_matrices_transposed(void* const* operands);

struct LoadOperands {
  uint32_t* x;
  const uint16_t* row;
};

struct MultiplyOperands {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
void multiply_add(void* const* operands) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const MultiplyOperands*>(operands[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      a[group + (i / 2 % 2) * 8][pair + i % 2 + i / 4 * 8] = half_of<T>(own.a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) b[pair + i % 2 + i / 2 * 8][group] = half_of<T>(own.b[i / 2], i % 2);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& own = *static_cast<MultiplyOperands*>(operands[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) own.c[i] += a[row][k] * b[k][column];
    }
  }
}

// Runs one block of a kernel of csrc/cuda.
template <typename Kernel>
void run_block(Block& block, const typename Kernel::Args& args, Position position, WarpOrder order) {
  using Shared = typename Kernel::Shared;
  const auto memory = std::make_unique<Shared>();
  std::memset(static_cast<void*>(memory.get()), 0xff, sizeof(Shared));
  block.run([&] { Kernel::run(args, *memory); }, position, order);
}

// Runs a kernel over its whole grid.
template <typename Kernel>
void run(const typename Kernel::Args& args, int threads, WarpOrder order) {
  Block block(threads);
  const auto grid = Kernel::grid(args);
  for (int y = 0; y < grid.y; ++y) {
    for (int x = 0; x < grid.x; ++x) run_block<Kernel>(block, args, {x, y, grid.x}, order);
  }
}

}  // namespace emulation

inline int thread_index() {
  return emulation::Block::current->thread();
}
inline int block_x() {
  return emulation::Block::current->position().x;
}
inline int block_y() {
  return emulation::Block::current->position().y;
}
inline int blocks_x() {
  return emulation::Block::current->position().blocks_x;
}
inline void require(bool condition, const char* what) {
  emulation::Block::current->require(condition, what);
}
inline void sync_block() {
  emulation::Block::current->sync();
}

float shuffle_xor(float x, int mask);

inline float power_of_two(float x) {
  return std::exp2(x);
}

template <typename T>
uint32_t pack(float low, float high) {
  return T(low).x | static_cast<uint32_t>(T(high).x) << 16;
}
template <typename T>
float low_half(uint32_t pair) {
  return emulation::half_of<T>(pair, 0);
}
template <typename T>
float high_half(uint32_t pair) {
  return emulation::half_of<T>(pair, 1);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::MultiplyOperands operands{c, a, {b0, b1}};
  emulation::Block::current->together(emulation::multiply_add<T>, &operands);
}

inline void load_matrices(uint32_t (&x)[4], const uint16_t* row) {
  emulation::LoadOperands operands{x, row};
  emulation::Block::current->together(emulation::load_matrices, &operands);
}
inline void load_matrices_transposed(uint32_t (&x)[4], const uint16_t* row) {
  emulation::LoadOperands operands{x, row};
  emulation::Block::current->together(emulation::load_matrices_transposed, &operands);
}

inline void store_words(void* to, const uint32_t (&x)[4]) {
  require(reinterpret_cast<uintptr_t>(to) % sizeof(x) == 0, "16 bytes are written to an address that is not aligned");
  std::memcpy(to, x, sizeof(x));
}

inline void copy_async(void* shared, const void* global, bool valid) {
  emulation::Block::current->start_copy(shared, global, valid);
}
inline void commit_copies() {
  emulation::Block::current->commit_copies();
}
template <int kPending>
void wait_for_copies() {
  emulation::Block::current->wait_for_copies(kPending);
}

}  // namespace uniattn::cuda
