// The ranks of a run and what they do together: sums, broadcasts, checks that they agree.
#pragma once
#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "support/error.h"

namespace uniattn {

// A collective failed: another rank has died, does not answer, or has given up. `operation` and `cause` are what this
// rank saw of it.
struct CommunicationError : Error {
  CommunicationError(const std::string& operation, const std::string& cause);
};

// Every operation is collective: all ranks call it, in the same order and with tensors of the same shapes and dtypes,
// and it returns when this rank's part is done. They are small and go over Gloo, apart from the traffic of training
// (connect). A group of one does nothing and opens no socket. When a rank dies or stays silent for longer than the
// timeout, the others throw CommunicationError; the group is then of no further use.
class ProcessGroup {
 public:
  // Joins the group that the environment describes (parallel/launch.h) and waits for all ranks. Throws UsageError when
  // the environment is wrong, Error naming the missing ranks when they do not come within `timeout`.
  explicit ProcessGroup(std::chrono::seconds timeout);
  // Waits for the other ranks, so that none finds its peers gone while it still works. While an exception passes
  // through, it makes them end instead.
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int64_t rank() const { return rank_; }
  int64_t world_size() const { return world_size_; }
  int64_t local_rank() const { return local_rank_; }  // among the ranks of this machine

  // Adds the ranks' tensors (float32, float64, bfloat16 or int64; any device) in place, in an order that depends on
  // shape and world size alone: the same bits on all ranks and in every repeat.
  void all_reduce_sum(at::Tensor& tensor);
  // Sums of one number each; the same value on all ranks.
  int64_t sum(int64_t value);
  double sum(double value);
  bool any(bool value);
  // The ranks' values, in their order.
  std::vector<int64_t> all_gather(int64_t value);
  std::vector<double> all_gather(double value);
  std::vector<std::string> all_gather(const std::string& value);

  // Overwrites `tensor` with that of rank `root`.
  void broadcast(at::Tensor& tensor, int64_t root);
  void barrier();
  // Throws Error on all ranks, naming those whose `value` (of `what`, such as "configuration") is not the one of rank
  // 0.
  void require_equal(const std::string& what, const std::string& value);

  // A communicator of `size` ranks for tensors on `device`, of which this one is `rank`. All ranks of the world call
  // it; those that are to be together give the same `name`.
  Communicator connect(const std::string& name, int64_t rank, int64_t size, at::Device device);

 private:
  template <class Start>
  void run(const char* operation, Start start);
  template <class T>
  std::vector<T> gather_numbers(T value, at::ScalarType dtype);

  struct Connections;

  int64_t rank_, world_size_, local_rank_;
  int64_t connections_made_ = 0;
  int exceptions_ = std::uncaught_exceptions();
  std::chrono::milliseconds timeout_;
  std::unique_ptr<Connections> connections_;  // null in a group of one
};

// What main() prints before it ends by `error`. With several ranks one of them names the failed rank and the cause, the
// others say that they end too; it returns when all could leave word, or after some seconds.
std::string last_words(const std::exception& error);

}  // namespace uniattn
