// Small random Llama directories and token data for the tests.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "checkpoint/model_directory.h"
#include "data/prepare.h"
#include "temporary_directory.h"

namespace uniattn::testing {

struct TinyShape {
  int64_t vocab = 40, hidden = 24, intermediate = 48, layers = 4, heads = 4, kv_heads = 2;
  bool tied = false;
};

nlohmann::json tiny_config(const TinyShape& shape = {});

// Writes config.json and random float32 weights (scale chosen so that attention is far from uniform).
ModelDirectory write_tiny_model(const std::string& directory, const TinyShape& shape = {}, uint64_t seed = 0);

// `documents` of random ids with lengths in [2, longest], prepared into shards below `directory`.
TokenShards random_shards(const std::string& directory, int64_t documents, int64_t longest, int64_t vocab = 40,
                          uint64_t seed = 0);

}  // namespace uniattn::testing
