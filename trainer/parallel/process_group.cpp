#include "parallel/process_group.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>

#include "parallel/backends.h"
#include "parallel/launch.h"
#include "parallel/rank_monitor.h"
#include "parallel/rendezvous.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

// Gloo works on contiguous memory of the CPU. Calls `reduce` with such a tensor, the original where it will do.
template <class Reduce>
void on_cpu(at::Tensor& tensor, Reduce reduce) {
  at::Tensor staged = tensor.cpu().contiguous();
  reduce(staged);
  if (!staged.is_same(tensor)) tensor.copy_(staged);
}

// Of this process. It outlives a group that an exception has ended: main() still has to say why.
std::unique_ptr<RankMonitor>& monitor() {
  static std::unique_ptr<RankMonitor> instance;
  return instance;
}

}  // namespace

struct ProcessGroup::Connections {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> control;
};

CommunicationError::CommunicationError(const std::string& operation, const std::string& cause)
    : Error(fmt::format("{} failed: {}", operation, cause)) {}

ProcessGroup::ProcessGroup(std::chrono::seconds timeout) : timeout_(timeout) {
  const Launch launch = Launch::from_environment();
  rank_ = launch.rank, world_size_ = launch.world_size, local_rank_ = launch.local_rank;
  if (world_size_ == 1) return;
  std::signal(SIGPIPE, SIG_IGN);  // of a peer that is gone: an error to report, not the end of this process
  connections_ = std::make_unique<Connections>();
  connections_->store = meet(launch, timeout_);
  connections_->control = connect_backend(connections_->store, "control", rank_, world_size_, at::kCPU, timeout_);
  monitor() = std::make_unique<RankMonitor>(launch, connections_->store, timeout_);
}

ProcessGroup::~ProcessGroup() {
  if (!connections_) return;
  if (std::uncaught_exceptions() > exceptions_) {
    monitor()->announce_trouble();
    return;
  }
  try {
    barrier();
  } catch (const std::exception& error) {
    log::warn(fmt::format("another rank has failed while this one had done all: {}", error.what()));
  }
  monitor().reset();
}

// Starts an operation and waits for it.
template <class Start>
void ProcessGroup::run(const char* operation, Start start) {
  try {
    start(*connections_->control)->wait();
  } catch (const std::exception& error) {
    throw CommunicationError(operation, cause_of(error));
  }
}

Communicator ProcessGroup::connect(const std::string& name, int64_t rank, int64_t size, at::Device device) {
  if (!connections_) return {};
  const std::string unique = fmt::format("{}/{}", ++connections_made_, name);
  return {connections_->store, unique, rank, size, device, timeout_};
}

void ProcessGroup::all_reduce_sum(at::Tensor& tensor) {
  if (!connections_) return;
  at::NoGradGuard no_grad;
  on_cpu(tensor, [&](const at::Tensor& staged) {
    std::vector<at::Tensor> tensors = {staged};
    run("all-reduce", [&](c10d::Backend& gloo) { return gloo.allreduce(tensors); });
  });
}

int64_t ProcessGroup::sum(int64_t value) {
  at::Tensor tensor = at::full({1}, value, at::kLong);
  all_reduce_sum(tensor);
  return tensor.item<int64_t>();
}

double ProcessGroup::sum(double value) {
  at::Tensor tensor = at::full({1}, value, at::kDouble);
  all_reduce_sum(tensor);
  return tensor.item<double>();
}

bool ProcessGroup::any(bool value) {
  return sum(int64_t{value}) > 0;
}

template <class T>
std::vector<T> ProcessGroup::gather_numbers(T value, at::ScalarType dtype) {
  at::Tensor values = at::zeros({world_size_}, dtype);
  values[rank_] = value;
  all_reduce_sum(values);  // adding zeros changes no value
  return {values.data_ptr<T>(), values.data_ptr<T>() + world_size_};
}

std::vector<int64_t> ProcessGroup::all_gather(int64_t value) {
  return gather_numbers(value, at::kLong);
}

std::vector<double> ProcessGroup::all_gather(double value) {
  return gather_numbers(value, at::kDouble);
}

std::vector<std::string> ProcessGroup::all_gather(const std::string& value) {
  if (!connections_) return {value};
  const std::vector<int64_t> sizes = all_gather(static_cast<int64_t>(value.size()));
  const int64_t longest = std::max<int64_t>(*std::max_element(sizes.begin(), sizes.end()), 1);
  at::Tensor own = at::zeros({longest}, at::kByte), all = at::empty({world_size_ * longest}, at::kByte);
  std::copy(value.begin(), value.end(), own.data_ptr<uint8_t>());
  run("all-gather", [&](c10d::Backend& gloo) { return gloo._allgather_base(all, own); });
  std::vector<std::string> values;
  for (int64_t rank = 0; rank < world_size_; ++rank) {
    const uint8_t* begin = all.data_ptr<uint8_t>() + rank * longest;
    values.emplace_back(begin, begin + sizes[rank]);
  }
  return values;
}

void ProcessGroup::broadcast(at::Tensor& tensor, int64_t root) {
  if (!connections_) return;
  at::NoGradGuard no_grad;
  on_cpu(tensor, [&](const at::Tensor& staged) {
    std::vector<at::Tensor> tensors = {staged};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    run("broadcast", [&](c10d::Backend& gloo) { return gloo.broadcast(tensors, options); });
  });
}

void ProcessGroup::barrier() {
  if (!connections_) return;
  run("barrier", [](c10d::Backend& gloo) { return gloo.barrier(); });
}

void ProcessGroup::require_equal(const std::string& what, const std::string& value) {
  if (!connections_) return;
  const std::vector<std::string> values = all_gather(value);
  std::vector<int64_t> others;
  for (int64_t rank = 0; rank < world_size_; ++rank)
    if (values[rank] != values[0]) others.push_back(rank);
  if (!others.empty())
    fail("the {} of rank {} is not the one of rank 0; start all ranks with the same", what, fmt::join(others, ", "));
}

std::string last_words(const std::exception& error) {
  return monitor() ? monitor()->last_words(error) : message_of(error);
}

}  // namespace uniattn
