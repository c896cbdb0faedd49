#include "inference/loaded_model.h"

#include <filesystem>

#include "storage/json.h"
#include "support/error.h"

namespace uniattn {

Decoder map_decoder(const ModelDirectory& directory, at::ScalarType dtype, at::Device device) {
  const std::unique_ptr<TensorSource> source = open_model_tensors(directory.path);
  check_tensors(*source, directory.config, directory.plan, false);
  Decoder model{directory.config, directory.plan, {}, {}, {}, {}};
  model.layers.resize(static_cast<size_t>(directory.config.num_layers));
  const std::vector<TensorSpec> specs = tensor_specs(directory.config, directory.plan);
  const auto parameters = model.parameters();
  for (size_t i = 0; i < specs.size(); ++i) {
    const bool stays = device.is_cpu() && source->info(specs[i].name).dtype == dtype;
    *parameters[i].second = stays ? source->tensor(specs[i].name) : read_tensor(*source, specs[i], dtype, device);
  }
  if (directory.config.tied_embeddings) model.head = model.embedding;
  return model;
}

std::vector<int64_t> end_tokens(const ModelDirectory& directory) {
  const std::string path = directory.path + "/generation_config.json";
  if (std::filesystem::exists(path)) {
    const nlohmann::json config = read_json(path);
    const nlohmann::json ids = config.is_object() ? config.value("eos_token_id", nlohmann::json()) : nlohmann::json();
    try {
      if (ids.is_number_integer()) return {ids.get<int64_t>()};
      if (ids.is_array() && !ids.empty()) return ids.get<std::vector<int64_t>>();
    } catch (const nlohmann::json::exception&) {
      fail("{}: \"eos_token_id\": expected a token id or a list of them, got {}", path, ids.dump());
    }
  }
  return {directory.config.eos_ids.begin(), directory.config.eos_ids.end()};
}

}  // namespace uniattn
