#include "train/step_time.h"

#include <algorithm>

namespace uniattn {

const std::vector<DeviceSheet>& known_devices() {
  // NVLink and one 200 or 400 Gb/s adapter per GPU, as in the vendor's DGX machines.
  static const std::vector<DeviceSheet> devices = {{"a100", 312e12, 80e9, 300e9, 25e9, 8},
                                                   {"h100", 989e12, 80e9, 450e9, 50e9, 8},
                                                   {"h200", 989e12, 141e9, 450e9, 50e9, 8}};
  return devices;
}

StepTime predict_step(const StageEstimate& stage, const Division& division, int64_t accumulation,
                      const DeviceSheet& device) {
  const TrafficEstimate traffic = stage.traffic();
  const auto rate = [&](int64_t neighbours) {
    return neighbours <= device.per_node ? device.node_link : device.network_link;
  };
  const double within = rate(division.slices()), across = rate(division.world_size);
  const double reduce =
      static_cast<double>(traffic.reduce_scatter) / within + static_cast<double>(traffic.all_reduce) / across;
  const double gather = static_cast<double>(traffic.all_gather) / within;
  StepTime time;
  time.compute = stage.flops() / (device.flops * kAssumedUtilization);
  time.communication = reduce + gather;
  if (division.shard == Shard::full) {
    time.exposed = std::max(0.0, time.communication - time.compute);
  } else {
    // Gradients travel during the backward pass of the last micro-batch, two thirds of its work; parameters after the
    // update.
    const double last_backward = time.compute / static_cast<double>(accumulation) * 2 / 3;
    time.exposed = gather + std::max(0.0, reduce - last_backward);
  }
  return time;
}

}  // namespace uniattn
