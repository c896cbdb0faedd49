#include "parallel/communicator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include "parallel/backends.h"
#include "parallel/process_group.h"
#include "parallel/rendezvous.h"

namespace uniattn {
namespace {

// Both ends of a collective are marked for profilers: what lies between them runs beside it, and the wait is what it
// costs.
void mark_start(const std::string& operation) {
  RECORD_USER_SCOPE("start " + operation);
}

void finish(const std::string& operation, c10d::Work& work) {
  RECORD_USER_SCOPE("wait for " + operation);
  try {
    work.wait();
  } catch (const std::exception& error) {
    throw CommunicationError(operation, cause_of(error));
  }
}

}  // namespace

struct Communicator::Connection {
  c10::intrusive_ptr<c10d::Backend> backend;
};

Communicator::Communicator(const c10::intrusive_ptr<c10d::Store>& store, const std::string& name, int64_t rank,
                           int64_t size, at::Device device, std::chrono::milliseconds timeout)
    : rank_(rank), size_(size), device_(device) {
  if (size == 1) return;
  connection_ = std::make_shared<Connection>(connect_backend(store, name, rank, size, device, timeout));
}

Pending Communicator::reduce_scatter_sum(at::Tensor out, at::Tensor in) const {
  const at::NoGradGuard no_grad;
  if (size_ == 1) {
    if (!out.is_alias_of(in)) out.copy_(in);
    return {};
  }
  mark_start("reduce-scatter");
  if (device_.is_cuda()) {
    const auto work = connection_->backend->_reduce_scatter_base(out, in);
    return Pending([work, out, in] { finish("reduce-scatter", *work); });
  }
  // Gloo's own is an all-reduce of which most is thrown away. This sends each part once and adds in the ranks' order.
  at::Tensor parts = at::empty_like(in);
  std::vector<int64_t> even;
  const auto work = connection_->backend->alltoall_base(parts, in, even, even);
  return Pending([size = size_, work, out, in, parts] {
    const at::NoGradGuard inner_no_grad;
    finish("reduce-scatter", *work);
    const int64_t n = out.numel();
    out.copy_(parts.narrow(0, 0, n));
    for (int64_t r = 1; r < size; ++r) out.add_(parts.narrow(0, r * n, n));
  });
}

Pending Communicator::all_reduce_sum(at::Tensor tensor) const {
  if (size_ == 1) return {};
  if (device_.is_cuda()) {
    mark_start("all-reduce");
    std::vector<at::Tensor> tensors = {tensor};
    const auto work = connection_->backend->allreduce(tensors);
    return Pending([work, tensor] { finish("all-reduce", *work); });
  }
  const int64_t n = tensor.numel() / size_;
  const at::Tensor own = tensor.narrow(0, rank_ * n, n);
  const auto reduced = std::make_shared<Pending>(reduce_scatter_sum(own, tensor));
  return Pending([self = *this, reduced, own, tensor] {
    reduced->wait();
    self.all_gather(tensor, own).wait();
  });
}

Pending Communicator::all_gather(at::Tensor out, at::Tensor in) const {
  const at::NoGradGuard no_grad;
  if (size_ == 1) {
    if (!out.is_alias_of(in)) out.copy_(in);
    return {};
  }
  mark_start("all-gather");
  const auto work = connection_->backend->_allgather_base(out, in);
  return Pending([work, out, in] { finish("all-gather", *work); });
}

}  // namespace uniattn
