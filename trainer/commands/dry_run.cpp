#include "commands/dry_run.h"

#include <ATen/Context.h>

#include <algorithm>

#include "commands/options.h"
#include "commands/scratch.h"
#include "model/footprint.h"
#include "support/error.h"
#include "train/step_time.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

Division division_of(const Session& session, const RunOptions& options) {
  const ParallelConfig& parallel = session.config.parallel;
  if (options.world_size % parallel.replicas != 0)
    fail_usage("parallel.replicas is {}, and --world-size {} cannot be divided into as many equal groups",
               parallel.replicas, options.world_size);
  return {.shard = parse_shard(parallel.shard),
          .world_size = options.world_size,
          .replicas = parallel.replicas,
          .staged = options.device.empty() && !at::hasCUDA()};
}

ordered_json memory_json(const MemoryEstimate& m) {
  return {{"parameters", m.parameters}, {"masters", m.masters},         {"gradients", m.gradients},
          {"moments", m.moments},       {"activations", m.activations}, {"buffers", m.buffers},
          {"teacher", m.teacher},       {"total", m.total()},           {"host", m.host}};
}

double gb(int64_t bytes) {
  return static_cast<double>(bytes) / 1e9;
}

std::string memory_text(const std::string& name, const MemoryEstimate& m) {
  return fmt::format("\n{:<14} {:>10.3f} {:>8.3f} {:>10.3f} {:>8.3f} {:>12.3f} {:>8.3f} {:>8.3f} {:>8.3f} {:>10.3f}",
                     name, gb(m.parameters), gb(m.masters), gb(m.gradients), gb(m.moments), gb(m.activations),
                     gb(m.buffers), gb(m.teacher), gb(m.total()), gb(m.host));
}

// The stages on the imagined ranks, added to `result` and `text`.
void describe_stages(const Session& session, const RunOptions& options, ordered_json& result, std::string& text) {
  const Config& config = session.config;
  const Division division = division_of(session, options);
  std::string memory_table, traffic_table;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const std::string& name = config.stages[i].name;
    const StageEstimate stage(config, session.model.config, session.plan, session.model.plan, static_cast<int64_t>(i),
                              division);
    const MemoryEstimate memory = stage.memory();
    const TrafficEstimate traffic = stage.traffic();
    result["memory"][name] = memory_json(memory);
    result["sent"][name] = {{"reduce_scatter", traffic.reduce_scatter},
                            {"all_gather", traffic.all_gather},
                            {"all_reduce", traffic.all_reduce}};
    memory_table += memory_text(name, memory);
    traffic_table += fmt::format("\n{:<14} {:>14.3f} {:>10.3f} {:>10.3f}", name, gb(traffic.reduce_scatter),
                                 gb(traffic.all_gather), gb(traffic.all_reduce));
    if (options.device.empty()) continue;
    const DeviceSheet& device =
        *std::ranges::find(known_devices(), options.device, [](const DeviceSheet& sheet) { return sheet.name; });
    const StepTime time = predict_step(stage, division, config.optimizer.accumulation, device);
    result["step_seconds"][name] = {
        {"compute", time.compute}, {"exposed_communication", time.exposed}, {"total", time.total()}};
    traffic_table += fmt::format("   {:.3f} s on {}, {:.3f} s of them waiting for the network", time.total(),
                                 device.name, time.exposed);
  }
  if (config.stages.empty()) return;
  text += fmt::format("\n\nparallel.shard {}, {} ranks, {} of them with each slice", config.parallel.shard,
                      division.world_size, division.holders());
  text +=
      "\nGB per rank    parameters  masters  gradients  moments  activations  buffers  teacher    total  + on host" +
      memory_table + "\nGB sent a step reduce-scatter all-gather all-reduce" + traffic_table;
}

}  // namespace

void dry_run(const Session& session, const RunOptions& options) {
  const ModelConfig& c = session.model.config;
  const SharingPlan base = SharingPlan::all_full(c.num_layers);
  const int64_t parameters = total_parameters(c, session.plan);
  const double kv_share =
      static_cast<double>(total_kv_bytes(c, session.plan, 2)) / static_cast<double>(total_kv_bytes(c, base, 2));
  ordered_json result{
      {"parameters", parameters}, {"followers", session.plan.followers().size()}, {"kv_fraction", kv_share}};
  std::string text =
      fmt::format("model {}: {} parameters, {} of {} layers follow, KV cache {:.2f} % of the base\n",
                  session.model.path, parameters, session.plan.followers().size(), c.num_layers, 100 * kv_share);
  auto sample = [&](const char* name, const std::vector<DataSource>& sources) {
    for (const DataSource& source : sources) {
      const ScratchDirectory scratch;
      const TokenShards one = prepare_tokens(
          {source}, *session.tokenizer, session.model.path,
          {.max_length = session.config.data.max_length, .over_long = session.config.data.over_long, .samples = 1},
          scratch.path());
      result["data"].push_back(
          {{"set", name}, {"path", source.path}, {"tokens", one.tokens()}, {"supervised", one.supervised()}});
      text += fmt::format("\n{} data {}: one sample has {} tokens, {} supervised", name, source.path, one.tokens(),
                          one.supervised());
    }
  };
  if (session.config.calibration) sample("calibration", session.config.calibration->data);
  sample("training", session.config.data.train);
  sample("held-out", session.config.data.eval);
  describe_stages(session, options, result, text);
  print_result(options.json, result, text);
}

}  // namespace uniattn
