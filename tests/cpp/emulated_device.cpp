#include "emulated_device.h"

#include <ucontext.h>

#include <algorithm>
#include <stdexcept>

namespace uniattn::cuda {
namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024, kCopyBytes = 16;

// Where a context goes on. swapcontext would make a system call for every switch.
struct Place {
  void* buffer[5];
};

// Callers must not know that this never returns: AddressSanitizer would take it for a jump down the same stack.
[[gnu::noipa, gnu::no_sanitize_address]] void go_to(Place& place) {
  __builtin_longjmp(place.buffer, 1);
}

[[gnu::noinline]] void switch_to(Place& from, Place& to) {
  if (__builtin_setjmp(from.buffer) == 0) go_to(to);
}

Place scheduler;

bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kCopyBytes == 0;
}

}  // namespace

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  Place place;
  ucontext_t first_entry;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool entered = false;
  State state = State::kDone;
  Block::Operation operation = nullptr;
  void* operands = nullptr;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;

  void resume() {
    if (entered) return switch_to(scheduler, place);
    entered = true;
    getcontext(&first_entry);
    first_entry.uc_stack.ss_sp = stack.get();
    first_entry.uc_stack.ss_size = kStackBytes;
    makecontext(&first_entry, Block::enter_fiber, 0);
    if (__builtin_setjmp(scheduler.buffer) == 0) setcontext(&first_entry);
  }
};

Block* Block::current = nullptr;

Block::Block(int threads) : arrived_(threads / kLanes) {
  for (int i = 0; i < threads; ++i) fibers_.push_back(std::make_unique<Fiber>());
}

Block::~Block() = default;

void Block::enter_fiber() {
  for (;;) {
    current->body_();
    Fiber& fiber = *current->fibers_[current->running_];
    for (const auto& group : fiber.copy_groups) current->require(group.empty(), "a thread ended during its copies");
    fiber.copy_groups.clear();
    fiber.state = State::kDone;
    current->leave_fiber();
  }
}

void Block::leave_fiber() {
  switch_to(fibers_[running_]->place, scheduler);
}

bool Block::run_ready_lanes(int warp) {
  bool any = false;
  for (int thread = warp * kLanes; thread < (warp + 1) * kLanes; ++thread) {
    if (fibers_[thread]->state != State::kReady) continue;
    any = true;
    running_ = thread;
    fibers_[thread]->resume();
    if (!error_.empty()) throw std::logic_error(error_);
  }
  return any;
}

void Block::run(const std::function<void()>& body, Position position, WarpOrder order) {
  current = this;
  body_ = body;
  position_ = position;
  for (auto& fiber : fibers_) fiber->state = State::kReady;
  const int warps = static_cast<int>(arrived_.size());
  const auto count = [&](State state) {
    return std::count_if(fibers_.begin(), fibers_.end(), [&](const auto& fiber) { return fiber->state == state; });
  };
  for (;;) {
    for (int i = 0; i < warps; ++i) {
      while (run_ready_lanes(order == WarpOrder::kForward ? i : warps - 1 - i)) {
      }
    }
    const auto waiting = static_cast<size_t>(count(State::kAtBlock));
    if (static_cast<size_t>(count(State::kDone)) == fibers_.size()) return;
    if (waiting != fibers_.size()) throw std::logic_error("the threads of a block do not meet at a barrier");
    for (auto& fiber : fibers_) fiber->state = State::kReady;
  }
}

void Block::require(bool condition, const char* what) {
  if (condition) return;
  error_ = what;
  leave_fiber();
}

void Block::sync() {
  fibers_[running_]->state = State::kAtBlock;
  leave_fiber();
}

void Block::together(Operation operation, void* operands) {
  const int warp = running_ / kLanes;
  Fiber& own = *fibers_[running_];
  own.operation = operation;
  own.operands = operands;
  own.state = State::kAtWarp;
  if (++arrived_[warp] < kLanes) return leave_fiber();
  arrived_[warp] = 0;
  void* all[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    Fiber& fiber = *fibers_[warp * kLanes + lane];
    require(fiber.operation == operation, "the lanes of a warp ask for different operations");
    all[lane] = fiber.operands;
    fiber.state = State::kReady;
  }
  operation(all);
}

void Block::start_copy(void* to, const void* from, bool valid) {
  require(is_aligned(to) && is_aligned(from), "an asynchronous copy is not aligned to 16 bytes");
  std::memset(to, 0xff, kCopyBytes);
  fibers_[running_]->open_copies.push_back({to, from, valid});
}

void Block::commit_copies() {
  Fiber& fiber = *fibers_[running_];
  fiber.copy_groups.push_back(std::move(fiber.open_copies));
  fiber.open_copies.clear();
}

void Block::wait_for_copies(size_t pending) {
  auto& groups = fibers_[running_]->copy_groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      copy.valid ? std::memcpy(copy.to, copy.from, kCopyBytes) : std::memset(copy.to, 0, kCopyBytes);
    }
  }
}

namespace {

// The element in row r, column c of matrix i.
uint32_t matrix_element(void* const* operands, int i, int r, int c) {
  return static_cast<const LoadOperands*>(operands[8 * i + r])->row[c];
}

template <bool kTransposed>
void load(void* const* operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<LoadOperands*>(operands[lane]);
    Block::current->require(is_aligned(own.row), "a row for ldmatrix is not aligned to 16 bytes");
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint32_t low =
          kTransposed ? matrix_element(operands, i, pair, group) : matrix_element(operands, i, group, pair);
      const uint32_t high =
          kTransposed ? matrix_element(operands, i, pair + 1, group) : matrix_element(operands, i, group, pair + 1);
      own.x[i] = low | high << 16;
    }
  }
}

struct ShuffleOperands {
  float x, result;
  int mask;
};

void shuffle(void* const* operands) {
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& own = *static_cast<ShuffleOperands*>(operands[lane]);
    own.result = static_cast<const ShuffleOperands*>(operands[lane ^ own.mask])->x;
  }
}

}  // namespace

void load_matrices(void* const* operands) {
  load<false>(operands);
}
void load_matrices_transposed(void* const* operands) {
  load<true>(operands);
}

}  // namespace emulation

float shuffle_xor(float x, int mask) {
  emulation::ShuffleOperands operands{x, 0, mask};
  emulation::Block::current->together(emulation::shuffle, &operands);
  return operands.result;
}

}  // namespace uniattn::cuda
