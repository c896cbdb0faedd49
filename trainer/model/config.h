// The architecture of a decoder, read from a Hugging Face config.json. A model family is a row in the table of
// config.cpp.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace uniattn {

struct RopeScaling {
  enum class Kind { none, linear, llama3 } kind = Kind::none;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_positions = 8192;
};

enum class Activation { silu, gelu_tanh };

struct ModelConfig {
  std::string family;  // llama | mistral | gemma2
  int64_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, max_positions;
  double norm_eps = 1e-5, rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;
  Activation activation = Activation::silu;
  double attention_scale = 0;    // on q k^T
  double attention_softcap = 0;  // 0: none
  double final_softcap = 0;      // 0: none
  double embedding_scale = 1;
  bool unit_offset_norm = false;  // the norm's weight is 1 + w
  bool post_norms = false;        // norms after attention and MLP as well (Gemma-2)
  std::vector<int64_t> windows;   // per layer; 0 is global attention
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;
  std::string dtype;  // of the checkpoint, as config.json names it

  PlanLimits plan_limits() const;
};

// Throws Error naming the field: another architecture, a value this program does not honour (attention_bias, an unknown
// RoPE type), a missing or impossible one.
ModelConfig parse_model_config(const nlohmann::json& config);

// The plan in config.json's "uniattn" entry; all layers full when there is none.
SharingPlan parse_plan(const nlohmann::json& config, const ModelConfig& model);

// The "uniattn" entry that parse_plan reads.
nlohmann::json describe_plan(const SharingPlan& plan);

}  // namespace uniattn
