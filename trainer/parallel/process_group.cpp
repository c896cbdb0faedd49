#include "parallel/process_group.h"

#include <ATen/core/grad_mode.h>

#include <fmt/ranges.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "parallel/launch.h"
#include "support/error.h"

namespace uniattn {
namespace {

using std::chrono::milliseconds;

// Large enough that latency does not count, small enough to be no burden beside a model: 64 MiB.
constexpr int64_t kBucketElements = int64_t{1} << 24;

// The first line, without its full stop: c10d appends backtraces.
std::string cause(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  const std::string line = text.substr(0, text.find('\n'));
  return line.ends_with('.') ? line.substr(0, line.size() - 1) : line;
}

c10::intrusive_ptr<c10d::Store> open_store(const Launch& launch, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(launch.master_port);
  options.isServer = launch.rank == 0 && !launch.agent_store;
  options.waitWorkers = false;  // await_ranks can say who is missing
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::PrefixStore>("uniattn/" + launch.attempt,
                                                  c10::make_intrusive<c10d::TCPStore>(launch.master_address, options));
  } catch (const std::exception& error) {
    fail("rank {} of {}: cannot {} the store at {}:{}: {}; is rank 0 running, and the port free and reachable?",
         launch.rank, launch.world_size, options.isServer ? "open" : "reach", launch.master_address, launch.master_port,
         cause(error));
  }
}

std::string arrival_key(int64_t rank) {
  return fmt::format("arrived/{}", rank);
}

// The ranks that have not reached the store, as text.
std::string missing_ranks(c10d::Store& store, int64_t world_size) {
  std::vector<int64_t> missing;
  try {
    for (int64_t rank = 0; rank < world_size; ++rank) {
      if (!store.check({arrival_key(rank)})) missing.push_back(rank);
    }
  } catch (const std::exception&) {
    return "0, which ran the store,";  // it gave up first
  }
  return fmt::format("{}", fmt::join(missing, ", "));
}

// Returns once every rank has reached the store.
void await_ranks(c10d::Store& store, const Launch& launch, milliseconds timeout) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < launch.world_size; ++rank) keys.push_back(arrival_key(rank));
  try {
    store.set(arrival_key(launch.rank), std::vector<uint8_t>{1});
    store.wait(keys, timeout);
  } catch (const std::exception& error) {
    fail("rank {} of {}: rank {} is not there after {} s: {}; see its log", launch.rank, launch.world_size,
         missing_ranks(store, launch.world_size), timeout.count() / 1000, cause(error));
  }
}

// Gloo works on contiguous memory of the CPU. Calls `reduce` with such a tensor, the original where it will do.
template <class Reduce>
void on_cpu(at::Tensor& tensor, Reduce reduce) {
  at::Tensor staged = tensor.cpu().contiguous();
  reduce(staged);
  if (!staged.is_same(tensor)) tensor.copy_(staged);
}

}  // namespace

struct ProcessGroup::Backend {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

ProcessGroup::ProcessGroup(std::chrono::seconds timeout) {
  const Launch launch = Launch::from_environment();
  rank_ = launch.rank, world_size_ = launch.world_size, local_rank_ = launch.local_rank;
  if (world_size_ == 1) return;
  backend_ = std::make_unique<Backend>();
  backend_->store = open_store(launch, timeout);
  await_ranks(*backend_->store, launch, timeout);
  try {
    const auto options = c10d::ProcessGroupGloo::Options::create_default(timeout);
    backend_->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(backend_->store, static_cast<int>(rank_),
                                                                 static_cast<int>(world_size_), options);
  } catch (const std::exception& error) {
    fail(
        "rank {} of {}: cannot connect to the other ranks: {}; set GLOO_SOCKET_IFNAME to the network interface they "
        "share",
        rank_, world_size_, cause(error));
  }
}

ProcessGroup::~ProcessGroup() = default;

// Starts an operation and waits for it.
template <class Start>
void ProcessGroup::run(const char* operation, Start start) {
  try {
    start(*backend_->gloo)->wait();
  } catch (const std::exception& error) {
    fail("rank {} of {}: {} failed: {}; another rank has died or does not answer: see its log", rank_, world_size_,
         operation, cause(error));
  }
}

void ProcessGroup::all_reduce_sum(at::Tensor& tensor) {
  if (!backend_) return;
  at::NoGradGuard no_grad;
  on_cpu(tensor, [&](const at::Tensor& staged) {
    std::vector<at::Tensor> tensors = {staged};
    run("all-reduce", [&](c10d::ProcessGroupGloo& gloo) { return gloo.allreduce(tensors); });
  });
}

void ProcessGroup::all_reduce_sum(std::vector<at::Tensor>& tensors) {
  if (!backend_) return;
  at::NoGradGuard no_grad;
  for (size_t begin = 0, end = 0; begin < tensors.size(); begin = end) {
    int64_t elements = 0;
    do {
      elements += tensors[end++].numel();
    } while (end < tensors.size() && elements + tensors[end].numel() <= kBucketElements);

    at::Tensor buffer = at::empty({elements}, at::kFloat);
    int64_t offset = 0;
    const auto slice_of = [&](const at::Tensor& tensor) {
      const at::Tensor slice = buffer.narrow(0, offset, tensor.numel()).view(tensor.sizes());
      offset += tensor.numel();
      return slice;
    };
    for (size_t i = begin; i < end; ++i) slice_of(tensors[i]).copy_(tensors[i]);
    all_reduce_sum(buffer);
    offset = 0;
    for (size_t i = begin; i < end; ++i) tensors[i].copy_(slice_of(tensors[i]));
  }
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

void ProcessGroup::broadcast(at::Tensor& tensor, int64_t root) {
  if (!backend_) return;
  at::NoGradGuard no_grad;
  on_cpu(tensor, [&](const at::Tensor& staged) {
    std::vector<at::Tensor> tensors = {staged};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    run("broadcast", [&](c10d::ProcessGroupGloo& gloo) { return gloo.broadcast(tensors, options); });
  });
}

void ProcessGroup::barrier() {
  if (!backend_) return;
  run("barrier", [](c10d::ProcessGroupGloo& gloo) { return gloo.barrier(); });
}

void ProcessGroup::require_equal(const std::string& what, const std::string& value) {
  if (!backend_) return;
  at::Tensor size = at::full({1}, static_cast<int64_t>(value.size()), at::kLong);
  broadcast(size, 0);
  at::Tensor bytes = at::empty({size.item<int64_t>()}, at::kByte);
  if (rank_ == 0) std::copy(value.begin(), value.end(), bytes.data_ptr<uint8_t>());
  broadcast(bytes, 0);

  const uint8_t* first = bytes.data_ptr<uint8_t>();
  at::Tensor differs = at::zeros({world_size_}, at::kLong);
  differs[rank_] = value != std::string(first, first + bytes.numel());
  all_reduce_sum(differs);
  std::vector<int64_t> others;
  for (int64_t rank = 0; rank < world_size_; ++rank) {
    if (differs[rank].item<int64_t>() != 0) others.push_back(rank);
  }
  if (!others.empty()) {
    fail("rank {} of {}: the {} of rank {} is not the one of rank 0; start all ranks with the same", rank_, world_size_,
         what, fmt::join(others, ", "));
  }
}

}  // namespace uniattn
