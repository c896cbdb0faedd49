// The ranks of a run and what they do together: sums, broadcasts, checks that they agree.
#pragma once
#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace uniattn {

// Every operation is collective: all ranks call it, in the same order and with tensors of the same shapes and dtypes,
// and it returns when this rank's part is done. A group of one does nothing and opens no socket. When a rank dies or
// stays silent for longer than the timeout, the others throw Error with their rank, the operation and the cause; the
// group is then of no further use.
class ProcessGroup {
 public:
  // Joins the group that the environment describes (parallel/launch.h) and waits for all ranks. Throws UsageError when
  // the environment is wrong, Error naming the missing ranks when they do not come within `timeout`.
  explicit ProcessGroup(std::chrono::seconds timeout);
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int64_t rank() const { return rank_; }
  int64_t world_size() const { return world_size_; }
  int64_t local_rank() const { return local_rank_; }  // among the ranks of this machine

  // Adds the ranks' tensors (float32, float64, bfloat16 or int64; any device) in place, in an order that depends on
  // shape and world size alone: the same bits on all ranks and in every repeat.
  void all_reduce_sum(at::Tensor& tensor);
  // The same for floating tensors of any dtypes, summed in float32 buffers of many tensors at once.
  void all_reduce_sum(std::vector<at::Tensor>& tensors);
  // Sums of one number each; the same value on all ranks.
  int64_t sum(int64_t value);
  double sum(double value);
  bool any(bool value);

  // Overwrites `tensor` with that of rank `root`.
  void broadcast(at::Tensor& tensor, int64_t root);
  void barrier();
  // Throws Error on all ranks, naming those whose `value` (of `what`, such as "configuration") is not the one of rank
  // 0.
  void require_equal(const std::string& what, const std::string& value);

 private:
  struct Backend;
  template <class Start>
  void run(const char* operation, Start start);

  int64_t rank_, world_size_, local_rank_;
  std::unique_ptr<Backend> backend_;  // null in a group of one
};

}  // namespace uniattn
