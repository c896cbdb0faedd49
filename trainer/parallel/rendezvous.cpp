#include "parallel/rendezvous.h"

#include <c10/util/Exception.h>

#include <fmt/ranges.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "support/error.h"

namespace uniattn {
namespace {

using std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

StorePtr open_store(const Launch& launch, bool serve, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(launch.master_port);
  options.isServer = serve;
  options.waitWorkers = false;  // await_ranks can say who is missing
  options.timeout = timeout;
  // A restarted group must not read what the last one left.
  return c10::make_intrusive<c10d::PrefixStore>("uniattn/" + launch.attempt,
                                                c10::make_intrusive<c10d::TCPStore>(launch.master_address, options));
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

void await_ranks(c10d::Store& store, const Launch& launch, milliseconds timeout) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < launch.world_size; ++rank) keys.push_back(arrival_key(rank));
  try {
    store.set(arrival_key(launch.rank), std::vector<uint8_t>{1});
    store.wait(keys, timeout);
  } catch (const std::exception& error) {
    fail("rank {} of {}: rank {} is not there after {} s: {}; see its log", launch.rank, launch.world_size,
         missing_ranks(store, launch.world_size), timeout.count() / 1000, cause_of(error));
  }
}

}  // namespace

StorePtr meet(const Launch& launch, milliseconds timeout) {
  const bool serve = launch.rank == 0 && !launch.agent_store;
  StorePtr store;
  try {
    store = open_store(launch, serve, timeout);
  } catch (const std::exception& error) {
    fail("rank {} of {}: cannot {} the store at {}:{}: {}; is rank 0 running, and the port free and reachable?",
         launch.rank, launch.world_size, serve ? "open" : "reach", launch.master_address, launch.master_port,
         cause_of(error));
  }
  await_ranks(*store, launch, timeout);
  return store;
}

StorePtr connect_again(const Launch& launch, milliseconds timeout) {
  return open_store(launch, /*serve=*/false, timeout);
}

std::string cause_of(const std::exception& error) {
  const std::string text = message_of(error), line = text.substr(0, text.find('\n'));
  return line.ends_with('.') ? line.substr(0, line.size() - 1) : line;
}

std::string message_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
}

}  // namespace uniattn
