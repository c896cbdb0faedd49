// What the device can do and how full it got.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>

namespace uniattn {

// Operations per second of a large matrix product in `dtype`, the best of several; takes about a tenth of a second.
double measure_matmul_flops(at::Device device, at::ScalarType dtype);

// The largest memory so far, in bytes: of the device's allocator on a GPU, resident memory of the process on a CPU.
int64_t peak_memory_bytes(at::Device device);

}  // namespace uniattn
