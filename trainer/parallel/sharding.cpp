#include "parallel/sharding.h"

#include "support/error.h"

namespace uniattn {
namespace {

constexpr std::pair<const char*, Shard> kNames[] = {
    {"none", Shard::none}, {"optimizer", Shard::optimizer}, {"gradients", Shard::gradients}, {"full", Shard::full}};

}  // namespace

Shard parse_shard(const std::string& name) {
  for (const auto& [known, shard] : kNames)
    if (name == known) return shard;
  fail_usage("parallel.shard `{}` is unknown; known: none, optimizer, gradients, full", name);
}

const char* to_string(Shard shard) {
  for (const auto& [name, known] : kNames)
    if (shard == known) return name;
  return "";
}

Sharding make_sharding(ProcessGroup& group, Shard strategy, int64_t replicas, at::Device device) {
  const int64_t world = group.world_size();
  if (world % replicas != 0)
    fail_usage("parallel.replicas is {}, and {} ranks cannot be divided into as many equal groups", replicas, world);
  const int64_t groups = strategy == Shard::none ? world : replicas, size = world / groups;
  const int64_t replica = group.rank() / size, slice = group.rank() % size;
  return {.strategy = strategy,
          .world_size = world,
          .slices = group.connect("slices/" + std::to_string(replica), slice, size, device),
          .replicas = group.connect("replicas/" + std::to_string(slice), replica, groups, device)};
}

}  // namespace uniattn
