// Step time on hardware that is not here, from its data sheet (docs/scaling.md).
#pragma once
#include <string>
#include <vector>

#include "train/estimate.h"

namespace uniattn {

// Rates of one accelerator; bytes per second in one direction.
struct DeviceSheet {
  std::string name;
  double flops;         // dense bfloat16, per second
  double memory;        // bytes
  double node_link;     // to another one of its node
  double network_link;  // to another node
  int64_t per_node;
};

const std::vector<DeviceSheet>& known_devices();

struct StepTime {
  double compute = 0, communication = 0, exposed = 0;  // seconds; `exposed` is the communication that is waited for
  double total() const { return compute + exposed; }
};

// With compute at `kAssumedUtilization` of the sheet's rate, groups of neighbouring ranks in a node where they fit, and
// communication hidden behind the computation that it runs beside.
inline constexpr double kAssumedUtilization = 0.4;
StepTime predict_step(const StageEstimate& stage, const Division& division, int64_t accumulation,
                      const DeviceSheet& device);

}  // namespace uniattn
