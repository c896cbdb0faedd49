#include "commands/inference_options.h"

#include "commands/pipeline.h"
#include "inference/loaded_model.h"
#include "parallel/device.h"

namespace uniattn {

void ModelOptions::add_to(CLI::App& command) {
  command.add_option("--model", path, "Hugging Face directory, plain or exported by uniattn")->required();
  command.add_option("--dtype", dtype, "float32, bfloat16 or float16 (default: the checkpoint's)");
}

InferenceModel open_inference_model(const ModelOptions& options) {
  ModelDirectory directory = open_model_directory(options.path);
  const at::ScalarType dtype = parse_dtype(options.dtype.empty() ? directory.config.dtype : options.dtype);
  auto tokenizer = tokenizer_or_ids_only(directory);
  Decoder decoder = map_decoder(directory, dtype, compute_device(0));
  std::vector<int64_t> ends = end_tokens(directory);
  return {std::move(directory), std::move(tokenizer), std::move(decoder), std::move(ends)};
}

void add_sampling_options(CLI::App& command, SamplingOptions& options) {
  command.add_option("--temperature", options.temperature, "0 is greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--top-k", options.top_k, "Sample from the k most probable tokens only; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--top-p", options.top_p, "Then from those that make up this share only")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--seed", options.seed, "Of the sampling")->capture_default_str();
}

void add_engine_options(CLI::App& command, EngineOptions& options) {
  command.add_option("--max-batch", options.max_batch, "Sequences generated at once; further ones wait")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--prefill-chunk", options.prefill_chunk,
                  "Tokens of prompts read in one pass; fewer take less memory")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

}  // namespace uniattn
