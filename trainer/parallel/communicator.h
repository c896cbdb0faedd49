// Some of a run's ranks and the collectives of sharded training: NCCL on GPUs, Gloo on CPUs.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace c10d {
class Store;
class Work;
}  // namespace c10d

namespace uniattn {

// A collective that is under way, or nothing. It reads and writes its tensors until wait() returns, which must be
// called before this object goes.
class Pending {
 public:
  Pending() = default;
  explicit Pending(std::function<void()> finish) : finish_(std::move(finish)) {}
  // Throws CommunicationError (parallel/process_group.h) when the collective fails.
  void wait() {
    if (finish_) std::exchange(finish_, {})();
  }

 private:
  std::function<void()> finish_;
};

// Every operation is collective over the communicator's ranks. Tensors are contiguous, on its device, and of the same
// size on all ranks. Sums are taken in the order of the ranks on Gloo, so that a reduce-scatter and an all-reduce of
// the same values give the same bits; on NCCL in the order that it chooses, which depends on sizes and topology alone.
class Communicator {
 public:
  // One rank by itself: no socket, every operation is a copy.
  Communicator() = default;
  // Connects `size` ranks through the store, where `name` is theirs alone; `rank` is this one's among them.
  Communicator(const c10::intrusive_ptr<c10d::Store>& store, const std::string& name, int64_t rank, int64_t size,
               at::Device device, std::chrono::milliseconds timeout);

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  // out [n] becomes this rank's part of the sum of the ranks' in [size * n]; float32. `out` may be that part of `in`.
  Pending reduce_scatter_sum(at::Tensor out, at::Tensor in) const;
  // tensor [size * n] becomes the sum over the ranks; float32.
  Pending all_reduce_sum(at::Tensor tensor) const;
  // out [size * n] becomes the ranks' in [n], one after the other; any dtype. `in` may be this rank's part of `out`.
  Pending all_gather(at::Tensor out, at::Tensor in) const;

 private:
  struct Connection;

  int64_t rank_ = 0, size_ = 1;
  at::Device device_ = at::kCPU;
  std::shared_ptr<Connection> connection_;  // null for one rank
};

}  // namespace uniattn
