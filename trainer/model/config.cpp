#include "model/config.h"

#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

const json* find(const json& object, const char* key) {
  auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

// The library converts numbers silently: fractions are cut and numbers out of range are anything.
template <class T>
T read(const json& value, const char* key) {
  try {
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      const bool fits = value.is_number_unsigned()
                            ? std::in_range<T>(value.get<uint64_t>())
                            : value.is_number_integer() && std::in_range<T>(value.get<int64_t>());
      if (!fits) fail("config.json: `{}` is {}, expected an integer", key, value.dump());
    }
    return value.get<T>();
  } catch (const json::exception&) {
    fail("config.json: `{}` is {}, which is not of the expected type", key, value.dump());
  }
}

template <class T>
std::vector<T> read_list(const json& list, const char* key) {
  std::vector<T> values;
  for (const json& value : list) values.push_back(read<T>(value, key));
  return values;
}

template <class T>
T get_or(const json& object, const char* key, T fallback) {
  const json* value = find(object, key);
  return value ? read<T>(*value, key) : fallback;
}

int64_t positive(const json& object, const char* key) {
  const int64_t value = get_or<int64_t>(object, key, -1);
  if (value <= 0)
    fail("config.json: `{}` must be a positive integer, found {}", key,
         find(object, key) ? find(object, key)->dump() : "nothing");
  return value;
}

void refuse_when_set(const json& config, const char* key) {
  const json* value = find(config, key);
  if (value && *value != false && *value != json::object())
    fail("config.json: `{}` is {}; models that need it are not supported", key, value->dump());
}

// `rope_parameters` (transformers 5, theta inside) or `rope_theta` and `rope_scaling` (published checkpoints).
void read_rope(const json& config, ModelConfig& model) {
  const json* scaling = find(config, "rope_parameters");
  if (!scaling) scaling = find(config, "rope_scaling");
  model.rope_theta = get_or(config, "rope_theta", 10000.0);
  if (!scaling) return;
  model.rope_theta = get_or(*scaling, "rope_theta", model.rope_theta);
  const std::string type = get_or<std::string>(*scaling, "rope_type", get_or<std::string>(*scaling, "type", "default"));
  RopeScaling& rope = model.rope_scaling;
  if (type == "default") return;
  if (!find(*scaling, "factor")) fail("config.json: RoPE type `{}` needs `factor`", type);
  rope.factor = get_or(*scaling, "factor", 1.0);
  if (type == "linear") {
    rope.kind = RopeScaling::Kind::linear;
  } else if (type == "llama3") {
    rope.kind = RopeScaling::Kind::llama3;
    rope.low_freq_factor = get_or(*scaling, "low_freq_factor", rope.low_freq_factor);
    rope.high_freq_factor = get_or(*scaling, "high_freq_factor", rope.high_freq_factor);
    rope.original_max_positions = get_or(*scaling, "original_max_position_embeddings", rope.original_max_positions);
  } else {
    fail("config.json: RoPE type `{}` is not supported; known types: default, linear, llama3", type);
  }
}

void read_llama(const json&, ModelConfig&) {}

void read_mistral(const json& config, ModelConfig& model) {
  model.windows.assign(model.num_layers, get_or<int64_t>(config, "sliding_window", 0));
}

void read_gemma2(const json& config, ModelConfig& model) {
  model.tied_embeddings = get_or(config, "tie_word_embeddings", true);
  model.attention_scale = 1.0 / std::sqrt(get_or(config, "query_pre_attn_scalar", 256.0));
  model.attention_softcap = get_or(config, "attn_logit_softcapping", 0.0);
  model.final_softcap = get_or(config, "final_logit_softcapping", 0.0);
  model.embedding_scale = std::sqrt(static_cast<double>(model.hidden_size));
  model.unit_offset_norm = model.post_norms = true;
  const int64_t window = get_or<int64_t>(config, "sliding_window", 4096);
  const json* types = find(config, "layer_types");
  if (types && static_cast<int64_t>(types->size()) != model.num_layers)
    fail("config.json: `layer_types` has {} entries for {} layers", types->size(), model.num_layers);
  for (int64_t i = 0; i < model.num_layers; ++i) {
    // Published configs have no list: even layers slide. In an exported one a follower's entry names its mode.
    const bool listed = types && ((*types)[i] == "sliding_attention" || (*types)[i] == "full_attention");
    model.windows[i] = (listed ? (*types)[i] == "sliding_attention" : i % 2 == 0) ? window : 0;
  }
}

const std::map<std::string, std::function<void(const json&, ModelConfig&)>> kFamilies = {
    {"llama", read_llama}, {"mistral", read_mistral}, {"gemma2", read_gemma2}};

std::string family_of(const json& config) {
  std::string type = get_or<std::string>(config, "model_type", "");
  if (type == "uniattn") {
    const json* ours = find(config, "uniattn");
    type = ours ? get_or<std::string>(*ours, "base_model_type", "") : "";
    if (type.empty()) fail("config.json: model_type is `uniattn` but `uniattn.base_model_type` is missing");
  }
  if (!kFamilies.contains(type))
    fail("config.json: model_type `{}` is not supported; known families: gemma2, llama, mistral", type);
  return type;
}

Activation read_activation(const json& config) {
  const std::string name =
      get_or<std::string>(config, "hidden_activation", get_or<std::string>(config, "hidden_act", "silu"));
  if (name == "silu") return Activation::silu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  fail("config.json: activation `{}` is not supported; known: silu, gelu_pytorch_tanh", name);
}

std::vector<int32_t> read_eos(const json& config) {
  const json* eos = find(config, "eos_token_id");
  if (!eos) return {};
  return eos->is_array() ? read_list<int32_t>(*eos, "eos_token_id")
                         : std::vector<int32_t>{read<int32_t>(*eos, "eos_token_id")};
}

json describe_layer(const LayerPlan& layer) {
  json entry{{"mode", to_string(layer.mode)}};
  if (layer.leader >= 0) entry["leader"] = layer.leader;
  if (layer.compensation.kind == Compensation::Kind::full) entry["compensation_rank"] = nullptr;
  if (layer.compensation.kind == Compensation::Kind::low_rank) entry["compensation_rank"] = layer.compensation.rank;
  if (!layer.head_map.empty()) entry["head_map"] = layer.head_map;
  if (layer.num_kv_heads > 0) entry["num_kv_heads"] = layer.num_kv_heads;
  if (layer.leader_mask) entry["mask"] = "leader";
  return entry;
}

void refuse_unknown_keys(const json& object, const std::set<std::string>& known, const std::string& where) {
  for (const auto& [key, value] : object.items())
    if (!known.contains(key)) fail("config.json: {} has the key `{}`, which version 1 does not know", where, key);
}

LayerPlan parse_layer(const json& entry, const std::string& where) {
  refuse_unknown_keys(entry, {"mode", "leader", "compensation_rank", "head_map", "num_kv_heads", "mask"}, where);
  LayerPlan layer{.mode = parse_mode(entry.at("mode")),
                  .leader = get_or<int64_t>(entry, "leader", -1),
                  .compensation = {},
                  .head_map = {},
                  .num_kv_heads = get_or<int64_t>(entry, "num_kv_heads", 0),
                  .leader_mask = entry.contains("mask")};
  if (const auto rank = entry.find("compensation_rank"); rank != entry.end())
    layer.compensation = rank->is_null()
                             ? Compensation{Compensation::Kind::full, 0}
                             : Compensation{Compensation::Kind::low_rank, read<int64_t>(*rank, "compensation_rank")};
  if (const json* map = find(entry, "head_map")) layer.head_map = read_list<int64_t>(*map, "head_map");
  if (layer.leader_mask && entry["mask"] != "leader")
    fail("config.json: {}.mask is {}; version 1 knows `leader` alone", where, entry["mask"].dump());
  return layer;
}

}  // namespace

PlanLimits ModelConfig::plan_limits() const {
  return {num_layers, num_heads, num_kv_heads, hidden_size, windows};
}

ModelConfig parse_model_config(const json& config) {
  if (!config.is_object()) fail("config.json: expected a JSON object");
  ModelConfig model;
  model.family = family_of(config);
  for (const char* key : {"attention_bias", "mlp_bias", "quantization_config"}) refuse_when_set(config, key);
  model.vocab_size = positive(config, "vocab_size");
  model.hidden_size = positive(config, "hidden_size");
  model.intermediate_size = positive(config, "intermediate_size");
  model.num_layers = positive(config, "num_hidden_layers");
  model.num_heads = positive(config, "num_attention_heads");
  model.num_kv_heads = find(config, "num_key_value_heads") ? positive(config, "num_key_value_heads") : model.num_heads;
  if (!find(config, "head_dim") && model.hidden_size % model.num_heads)
    fail("config.json: hidden_size {} is not a multiple of num_attention_heads {}", model.hidden_size, model.num_heads);
  model.head_dim = find(config, "head_dim") ? positive(config, "head_dim") : model.hidden_size / model.num_heads;
  if (model.num_heads % model.num_kv_heads)
    fail("config.json: num_attention_heads {} is not a multiple of num_key_value_heads {}", model.num_heads,
         model.num_kv_heads);
  if (model.head_dim % 2) fail("config.json: head_dim {} is odd; rotary embedding needs an even one", model.head_dim);
  model.max_positions = get_or<int64_t>(config, "max_position_embeddings", 2048);
  model.norm_eps = get_or(config, "rms_norm_eps", 1e-6);
  model.tied_embeddings = get_or(config, "tie_word_embeddings", false);
  model.activation = read_activation(config);
  model.attention_scale = 1.0 / std::sqrt(static_cast<double>(model.head_dim));
  model.windows.assign(model.num_layers, 0);
  model.bos_id = get_or<int32_t>(config, "bos_token_id", -1);
  model.eos_ids = read_eos(config);
  model.dtype = get_or<std::string>(config, "dtype", get_or<std::string>(config, "torch_dtype", "float32"));
  read_rope(config, model);
  kFamilies.at(model.family)(config, model);
  return model;
}

SharingPlan parse_plan(const json& config, const ModelConfig& model) {
  SharingPlan plan = SharingPlan::all_full(model.num_layers);
  const json* ours = find(config, "uniattn");
  if (!ours) return plan;
  try {
    refuse_unknown_keys(*ours, {"version", "base_model_type", "layers"}, "uniattn");
    if (ours->at("version") != 1)
      fail("config.json: uniattn.version is {}; this program reads version 1", ours->at("version").dump());
    const json& layers = ours->at("layers");
    if (static_cast<int64_t>(layers.size()) != model.num_layers)
      fail("config.json: uniattn.layers has {} entries for {} layers", layers.size(), model.num_layers);
    for (size_t i = 0; i < layers.size(); ++i)
      plan.layers[i] = parse_layer(layers[i], fmt::format("uniattn.layers[{}]", i));
    plan.validate(model.plan_limits());
  } catch (const json::exception& error) {
    fail("config.json: the `uniattn` entry is malformed: {}", error.what());
  } catch (const UsageError& error) {
    fail("config.json: the `uniattn` entry: {}", error.what());  // a damaged file, not a wrong request
  }
  return plan;
}

json describe_plan(const SharingPlan& plan) {
  json layers = json::array();
  for (const LayerPlan& layer : plan.layers) layers.push_back(describe_layer(layer));
  return {{"version", 1}, {"layers", layers}};
}

}  // namespace uniattn
