// Counts the bytes of tensors on the CPU: what memory formulas speak of, without the libraries' own.
#pragma once
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

class CountingAllocator : public c10::Allocator {
 public:
  // In place of PyTorch's, which it uses.
  static CountingAllocator& install() {
    static CountingAllocator instance;
    c10::SetCPUAllocator(&instance, /*priority=*/200);
    return instance;
  }

  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{inner_->allocate(bytes), bytes, *this};
    const size_t now = bytes_ += bytes;
    size_t peak = peak_;
    while (peak < now && !peak_.compare_exchange_weak(peak, now)) {
    }
    return {block->memory.get(), block, &release, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  size_t bytes() const { return bytes_; }
  size_t peak() const { return peak_; }
  void reset_peak() { peak_ = bytes_.load(); }

 private:
  struct Block {
    c10::DataPtr memory;
    size_t bytes;
    CountingAllocator& owner;
  };
  static void release(void* block) {
    auto* own = static_cast<Block*>(block);
    own->owner.bytes_ -= own->bytes;
    delete own;
  }

  c10::Allocator* inner_ = c10::GetCPUAllocator();
  std::atomic<size_t> bytes_ = 0, peak_ = 0;
};
