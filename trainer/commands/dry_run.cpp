#include "commands/dry_run.h"

#include <algorithm>

#include "commands/options.h"
#include "commands/scratch.h"
#include "model/decoder.h"
#include "model/footprint.h"
#include "train/trained_set.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

// Bytes per rank while a stage trains. Every rank holds the whole model in this version.
struct Memory {
  int64_t parameters = 0;   // in the compute dtype
  int64_t masters = 0;      // float32 copies; none when the compute dtype is float32
  int64_t gradients = 0;    // float32 sums, and the leaves' own
  int64_t moments = 0;      // two float32 per trained element
  int64_t activations = 0;  // estimate, see docs/configuration.md
  int64_t teacher = 0;      // the base model, where the stage distills
  int64_t total() const { return parameters + masters + gradients + moments + activations + teacher; }
};

int64_t trained_parameters(const Session& session, const TrainedSet& set) {
  std::vector<std::string> names;
  int64_t trained = 0;
  for (const TensorSpec& spec : tensor_specs(session.model.config, session.plan)) {
    names.push_back(spec.name);
    if (is_trained(set, spec.name)) trained += c10::multiply_integers(spec.shape);
  }
  check_trained_set(set, names);
  return trained;
}

Memory stage_memory(const Session& session, const StageConfig& stage) {
  const ModelConfig& c = session.model.config;
  const int64_t bytes = session.config.model.dtype == "float32" ? 4 : 2;
  const int64_t trained = trained_parameters(session, stage.train);
  const int64_t tokens = session.config.data.max_length * session.config.optimizer.micro_batch;
  // Tensors that the backward pass of a layer reads: stream, two normed inputs, attention in and out, and four of the
  // MLP's width.
  const int64_t per_layer =
      4 * c.hidden_size + (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim + 4 * c.intermediate_size;
  const int64_t kept = session.config.optimizer.activation_checkpointing ? c.num_layers * c.hidden_size + per_layer
                                                                         : c.num_layers * per_layer;
  const int64_t teacher = stage.distill ? total_parameters(c, session.model.plan) * bytes : 0;
  return {.parameters = total_parameters(c, session.plan) * bytes,
          .masters = bytes == 4 ? 0 : trained * 4,
          .gradients = trained * (4 + bytes),
          .moments = trained * 8,
          .activations =
              tokens * (kept * bytes + 2 * c.hidden_size * 4) + std::min<int64_t>(tokens, 1024) * c.vocab_size * 8,
          .teacher = teacher};
}

ordered_json memory_json(const Memory& m) {
  return {{"parameters", m.parameters},   {"masters", m.masters}, {"gradients", m.gradients}, {"moments", m.moments},
          {"activations", m.activations}, {"teacher", m.teacher}, {"total", m.total()}};
}

std::string memory_text(const std::string& name, const Memory& m) {
  const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  return fmt::format("\n{:<14} {:>10.3f} {:>8.3f} {:>10.3f} {:>8.3f} {:>12.3f} {:>8.3f} {:>8.3f}", name,
                     gb(m.parameters), gb(m.masters), gb(m.gradients), gb(m.moments), gb(m.activations), gb(m.teacher),
                     gb(m.total()));
}

}  // namespace

void dry_run(const Session& session, bool json) {
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
  if (!session.config.stages.empty())
    text += "\n\nGB per rank    parameters  masters  gradients  moments  activations  teacher    total";
  for (const StageConfig& stage : session.config.stages) {
    const Memory memory = stage_memory(session, stage);
    result["memory"][stage.name] = memory_json(memory);
    text += memory_text(stage.name, memory);
  }
  print_result(json, result, text);
}

}  // namespace uniattn
