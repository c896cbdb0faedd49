// Counts the bytes of tensors on the CPU: what memory formulas speak of, without what libraries take beside them.
#pragma once
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdlib>
#include <new>

class CountingAllocator : public c10::Allocator {
 public:
  // In place of PyTorch's.
  static CountingAllocator& install() {
    static CountingAllocator instance;
    c10::SetCPUAllocator(&instance, /*priority=*/200);
    return instance;
  }

  // The size stands in front of the memory: some callers keep nothing but the pointer.
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = static_cast<char*>(std::aligned_alloc(kFront, kFront + (bytes + kFront - 1) / kFront * kFront));
    if (!block) throw std::bad_alloc();
    *reinterpret_cast<size_t*>(block) = bytes;
    const size_t now = bytes_ += bytes;
    size_t peak = peak_;
    while (peak < now && !peak_.compare_exchange_weak(peak, now)) {
    }
    return {block + kFront, block + kFront, &release, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  size_t bytes() const { return bytes_; }
  size_t peak() const { return peak_; }
  void reset_peak() { peak_ = bytes_.load(); }

 private:
  static constexpr size_t kFront = 64;

  static void release(void* memory) {
    char* block = static_cast<char*>(memory) - kFront;
    bytes_ -= *reinterpret_cast<size_t*>(block);
    std::free(block);
  }

  static inline std::atomic<size_t> bytes_ = 0, peak_ = 0;
};
