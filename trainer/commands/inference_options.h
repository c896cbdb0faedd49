// What generate, chat and serve have in common.
#pragma once
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_directory.h"
#include "inference/engine.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// --model DIR [--dtype NAME]
struct ModelOptions {
  std::string path, dtype;

  void add_to(CLI::App& command);
};

// A model directory with its weights mapped and its tokenizer, which refuses text where there is none.
struct InferenceModel {
  ModelDirectory directory;
  std::unique_ptr<Tokenizer> tokenizer;
  Decoder decoder;
  std::vector<int64_t> end_tokens;
};

InferenceModel open_inference_model(const ModelOptions& options);

void add_sampling_options(CLI::App& command, SamplingOptions& options);
void add_engine_options(CLI::App& command, EngineOptions& options);

}  // namespace uniattn
