#include "tiny_model.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <fstream>

#include "commands/pipeline.h"
#include "model/decoder.h"

namespace uniattn::testing {

namespace fs = std::filesystem;

nlohmann::json tiny_config(const TinyShape& shape) {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", shape.vocab},
          {"hidden_size", shape.hidden},
          {"intermediate_size", shape.intermediate},
          {"num_hidden_layers", shape.layers},
          {"num_attention_heads", shape.heads},
          {"num_key_value_heads", shape.kv_heads},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", shape.tied},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"torch_dtype", "float32"}};
}

ModelDirectory write_tiny_model(const std::string& directory, const TinyShape& shape, uint64_t seed) {
  fs::create_directories(directory);
  std::ofstream(directory + "/config.json") << tiny_config(shape).dump();
  const ModelDirectory model = open_model_directory(directory);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  NamedTensors tensors;
  for (const TensorSpec& spec : tensor_specs(model.config, model.plan)) {
    const bool vector = spec.shape.size() == 1;
    const double scale = vector ? 0.1 : 1.5 / std::sqrt(static_cast<double>(spec.shape.back()));
    tensors.emplace_back(spec.name, at::randn(spec.shape, generator).mul_(scale).add_(vector ? 1.0 : 0.0));
  }
  write_safetensors(directory + "/model.safetensors", tensors);
  return model;
}

TokenShards random_shards(const std::string& directory, int64_t documents, int64_t longest, int64_t vocab,
                          uint64_t seed) {
  fs::create_directories(directory);
  const std::string ids = directory + "/documents.ids";
  std::mt19937_64 random(seed);
  std::ofstream out(ids);
  for (int64_t i = 0; i < documents; ++i) {
    const auto length = static_cast<int64_t>(2 + random() % static_cast<uint64_t>(longest - 1));
    for (int64_t t = 0; t < length; ++t)
      out << random() % static_cast<uint64_t>(vocab) << (t + 1 < length ? " " : "\n");
  }
  out.close();
  write_tiny_model(directory + "/model", {.vocab = vocab});
  const auto tokenizer = tokenizer_or_ids_only(open_model_directory(directory + "/model"));
  return prepare_tokens({{.path = ids, .format = "ids"}}, *tokenizer, directory + "/model", {.max_length = longest},
                        directory + "/shards");
}

}  // namespace uniattn::testing
