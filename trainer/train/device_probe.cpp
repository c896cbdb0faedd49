#include "train/device_probe.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

#include "support/error.h"
#include "uniattn/ops.h"

namespace uniattn {

double measure_matmul_flops(at::Device device, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  using Clock = std::chrono::steady_clock;
  const int64_t size = device.is_cpu() ? 1024 : 8192;
  const at::Tensor a = at::ones({size, size}, at::dtype(dtype).device(device)), b = at::ones_like(a);
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const auto start = Clock::now();
    uniattn::linear(a, b)[0][0].item<double>();  // reading a value waits for the device
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, 2.0 * static_cast<double>(size * size * size) / seconds);
  }
  return best;
}

int64_t peak_memory_bytes(at::Device device) {
  if (!device.is_cpu()) {
    const auto stats = at::accelerator::getDeviceStats(device.index());
    return stats.allocated_bytes[0].peak;  // the first of the array counts all pools
  }
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  fail("/proc/self/status has no VmHWM line: the peak memory of this process is not known");
}

}  // namespace uniattn
