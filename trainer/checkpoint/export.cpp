#include "checkpoint/export.h"

#include <filesystem>
#include <fstream>

#include "data/jinja_template.h"
#include "data/model_template.h"
#include "model/decoder.h"
#include "storage/atomic_file.h"
#include "support/embedded.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Fields that plain transformers classes stumble over, so that they fail instead of initialising the missing
// projections at random: `layer_types` is checked by transformers 5, `pruned_heads` acted on by transformers 4
// (docs/export-format.md).
void poison_for_other_tools(json& config, const ModelConfig& model, const SharingPlan& plan) {
  config["layer_types"] = json::array();
  config["pruned_heads"] = json::object();
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const Mode mode = plan.layers[i].mode;
    const char* mask = model.windows[i] > 0 ? "sliding_attention" : "full_attention";
    config["layer_types"].push_back(mode == Mode::full ? mask : to_string(mode));
    if (mode != Mode::full) config["pruned_heads"][std::to_string(i)] = json::array();
  }
}

json export_config(const ModelDirectory& base, const SharingPlan& plan, at::ScalarType dtype) {
  json config = base.json;
  const char* name = dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = name;
  if (!plan.shares()) return config;
  config["architectures"] = {"UniAttnForCausalLM"};
  config["model_type"] = "uniattn";
  config["auto_map"] = {{"AutoConfig", "modeling_uniattn.UniAttnConfig"},
                        {"AutoModelForCausalLM", "modeling_uniattn.UniAttnForCausalLM"}};
  config["uniattn"] = describe_plan(plan);
  config["uniattn"]["base_model_type"] = base.config.family;
  poison_for_other_tools(config, base.config, plan);
  return config;
}

// A layer without its compensation tensors has none, and a linear one is then a skipped one.
void drop_missing_compensations(SharingPlan& plan, const ModelConfig& config, const TensorSource& tensors) {
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerPlan& layer = plan.layers[i];
    for (const LayerSlot& slot : layer_slots(config, layer, i))
      if (is_compensation(slot.name) && !tensors.contains(slot.name)) layer.compensation = {};
    if (layer.mode == Mode::linear && layer.compensation == Compensation{}) layer.mode = Mode::skip;
  }
}

bool is_companion(const std::string& name) {
  static const std::vector<std::string> names = {
      "tokenizer.model", "tokenizer.json", "tokenizer_config.json",  "special_tokens_map.json", "added_tokens.json",
      "vocab.json",      "merges.txt",     "generation_config.json", "chat_template.jinja",     "chat_template.json"};
  return std::find(names.begin(), names.end(), name) != names.end();
}

void copy_companions(const std::string& from, const fs::path& to) {
  for (const fs::directory_entry& entry : fs::directory_iterator(from))
    if (is_companion(entry.path().filename())) fs::copy_file(entry.path(), to / entry.path().filename());
}

void write_weights(const ModelConfig& config, const SharingPlan& plan, const TensorSource& tensors, const fs::path& to,
                   const ExportOptions& options) {
  ShardedWriter writer(to, options.max_shard_bytes);
  for (const TensorSpec& spec : tensor_specs(config, plan)) {
    writer.add(spec.name, read_tensor(tensors, spec, options.dtype));
    tensors.release();
  }
  writer.finish();
}

}  // namespace

void export_model(const ModelDirectory& base, SharingPlan plan, const TensorSource& tensors, const std::string& out,
                  const ExportOptions& options) {
  if (fs::exists(out) && !fs::is_empty(out) && !fs::exists(out + "/config.json"))
    fail("`{}` exists and is no model directory; choose another place for the export", out);
  drop_missing_compensations(plan, base.config, tensors);
  const fs::path building = fs::path(out).concat(".partial");
  fs::remove_all(building);
  fs::create_directories(building);
  try {
    write_weights(base.config, plan, tensors, building, options);
    copy_companions(base.path, building);
    if (options.chat_template && !has_template(base.path, *options.chat_template))
      write_file_atomically(building / "chat_template.jinja", jinja_template(*options.chat_template));
    if (plan.shares()) write_file_atomically(building / "modeling_uniattn.py", embedded::modeling_uniattn_py);
    write_file_atomically(building / "config.json", export_config(base, plan, options.dtype).dump(2) + "\n");
    fs::remove_all(out);
    fs::rename(building, out);
  } catch (const fs::filesystem_error& error) {
    fs::remove_all(building);
    fail("exporting to `{}` failed: {}", out, error.what());
  } catch (...) {
    fs::remove_all(building);
    throw;
  }
}

}  // namespace uniattn
