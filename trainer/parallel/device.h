// The device that a process computes on.
#pragma once
#include <c10/core/Device.h>

#include <cstdint>

namespace uniattn {

// GPU number `local_rank` where this machine has GPUs (the only one where just one is visible, as SLURM may bind them),
// made this thread's current one; else the CPU. Throws UsageError when there are fewer GPUs than ranks.
at::Device compute_device(int64_t local_rank);

}  // namespace uniattn
