#include "parallel/device.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "support/error.h"

namespace uniattn {

at::Device compute_device(int64_t local_rank) {
  if (!at::hasCUDA()) return at::kCPU;
  const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
  const int64_t visible = cuda.deviceCount(), index = visible == 1 ? 0 : local_rank;
  if (index >= visible)
    fail_usage("rank {} of this machine wants GPU {}, and {} GPUs are visible; start one rank per GPU", local_rank,
               index, visible);
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
  cuda.setDevice(device);
  return device;
}

}  // namespace uniattn
