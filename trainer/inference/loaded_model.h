// A model directory ready to generate.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/model_directory.h"
#include "model/decoder.h"

namespace uniattn {

// The weights, mapped into memory where they are stored in `dtype` and the device is the CPU: nothing is read before it
// is used, and processes share it. Throws Error naming a tensor that is missing or has another shape.
Decoder map_decoder(const ModelDirectory& directory, at::ScalarType dtype, at::Device device);

// The tokens that end an answer: those of generation_config.json where it names some, as in `transformers`, else those
// of config.json.
std::vector<int64_t> end_tokens(const ModelDirectory& directory);

}  // namespace uniattn
