#include "parallel/backends.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "parallel/rendezvous.h"
#include "support/error.h"

namespace uniattn {
namespace {

using std::chrono::milliseconds;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

BackendPtr connect_gloo(const StorePtr& store, int rank, int size, milliseconds timeout) {
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size,
                                                     c10d::ProcessGroupGloo::Options::create_default(timeout));
}

#ifdef USE_C10D_NCCL
BackendPtr connect_nccl(const StorePtr& store, int rank, int size, at::Device device, milliseconds timeout) {
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  const auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  nccl->setBoundDeviceId(device);  // the rank is pinned to this GPU; NCCL need not guess
  return nccl;
}
#else
BackendPtr connect_nccl(const StorePtr&, int, int, at::Device, milliseconds) {
  fail(
      "this build has no NCCL, and the ranks are to compute on GPUs; build it where nvcc is found "
      "(docs/distributed.md)");
}
#endif

}  // namespace

BackendPtr connect_backend(const StorePtr& store, const std::string& name, int64_t rank, int64_t size,
                           at::Device device, milliseconds timeout) {
  const auto own = c10::make_intrusive<c10d::PrefixStore>(name, store);
  const auto r = static_cast<int>(rank), n = static_cast<int>(size);
  if (device.is_cuda()) return connect_nccl(own, r, n, device, timeout);
  try {
    return connect_gloo(own, r, n, timeout);
  } catch (const std::exception& error) {
    fail(
        "rank {} of {} ({}): cannot connect to the other ranks: {}; set GLOO_SOCKET_IFNAME to the network interface "
        "they share",
        rank, size, name, cause_of(error));
  }
}

}  // namespace uniattn
