// The device that a process computes on.
#pragma once
#include <ATen/Context.h>
#include <c10/core/Device.h>

namespace uniattn {

// GPU number `local_rank` where there is one, else the CPU.
inline at::Device compute_device(int64_t local_rank) {
  if (at::hasCUDA()) return {at::kCUDA, static_cast<at::DeviceIndex>(local_rank)};
  return at::kCPU;
}

}  // namespace uniattn
