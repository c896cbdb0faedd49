#include <filesystem>

#include "commands/commands.h"
#include "commands/options.h"
#include "checkpoint/run_directory.h"
#include "inference/kv_cache.h"
#include "model/footprint.h"
#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

struct InspectArguments {
  std::string model, config;
  std::vector<std::string> overrides;
  int64_t tokens = 4096;
  bool json = false;
};

std::string compensation_text(const Compensation& c) {
  if (c.kind == Compensation::Kind::none) return "-";
  return c.kind == Compensation::Kind::full ? "full" : fmt::format("rank {}", c.rank);
}

ordered_json layer_json(const ModelConfig& config, const LayerPlan& plan, int64_t index, int64_t bytes) {
  ordered_json entry{{"layer", index}, {"mode", to_string(plan.mode)}};
  if (plan.leader >= 0) entry["leader"] = plan.leader;
  if (plan.leader_mask) entry["mask"] = "leader";
  if (plan.num_kv_heads > 0) entry["num_kv_heads"] = plan.num_kv_heads;
  entry["compensation"] = compensation_text(plan.compensation);
  entry["parameters"] = layer_parameters(config, plan, index);
  entry["kv_bytes_per_token"] = layer_kv_bytes(config, plan, bytes);
  return entry;
}

std::string layer_text(const ordered_json& entry) {
  const auto number = [&](const char* key) { return entry.contains(key) ? entry[key].dump() : "-"; };
  return fmt::format("{:>5}  {:<12} {:>6}  {:<6}  {:>8}  {:<10} {:>14} {:>10}\n", number("layer"),
                     entry["mode"].get<std::string>(), number("leader"), entry.value("mask", "-"),
                     number("num_kv_heads"), entry["compensation"].get<std::string>(), number("parameters"),
                     number("kv_bytes_per_token"));
}

void report(const ModelDirectory& model, const SharingPlan& plan, int64_t tokens, bool as_json) {
  const ModelConfig& config = model.config;
  const SharingPlan base = SharingPlan::all_full(config.num_layers);
  const auto bytes = static_cast<int64_t>(at::elementSize(parse_dtype(config.dtype)));
  const int64_t parameters = total_parameters(config, plan), base_parameters = total_parameters(config, base);
  const int64_t kv = total_kv_bytes(config, plan, bytes), base_kv = total_kv_bytes(config, base, bytes);
  const int64_t cache = cache_bytes(config, plan, tokens, bytes), base_cache = cache_bytes(config, base, tokens, bytes);
  ordered_json layers = ordered_json::array();
  std::string text =
      fmt::format("{} ({}, {} layers, {})\n\n", model.path, config.family, config.num_layers, config.dtype) +
      "layer  mode         leader  mask    KV heads  compensation   parameters  KV B/token\n";
  for (int64_t i = 0; i < config.num_layers; ++i) {
    layers.push_back(layer_json(config, plan.layers[i], i, bytes));
    text += layer_text(layers.back());
  }
  const double kv_share = static_cast<double>(kv) / static_cast<double>(base_kv);
  const ordered_json result{{"model", model.path},
                            {"family", config.family},
                            {"dtype", config.dtype},
                            {"followers", plan.followers().size()},
                            {"parameters", parameters},
                            {"base_parameters", base_parameters},
                            {"weight_bytes", parameters * bytes},
                            {"kv_bytes_per_token", kv},
                            {"base_kv_bytes_per_token", base_kv},
                            {"kv_fraction", kv_share},
                            {"cache_tokens", tokens},
                            {"cache_bytes", cache},
                            {"base_cache_bytes", base_cache},
                            {"layers", layers}};
  text += fmt::format(
      "\nfollowers      {} of {} layers\nparameters     {} ({:.2f} % of the base)\nweights        {:.2f} GB\nKV cache  "
      "     {} bytes per token ({:.2f} % of the base)\n               {} bytes in pages and windows for {} tokens "
      "({:.2f} % of the base)",
      plan.followers().size(), config.num_layers, parameters,
      100.0 * static_cast<double>(parameters) / static_cast<double>(base_parameters),
      static_cast<double>(parameters * bytes) / 1e9, kv, 100 * kv_share, cache, tokens,
      100.0 * static_cast<double>(cache) / static_cast<double>(base_cache));
  print_result(as_json, result, text);
}

void run_inspect(const InspectArguments& arguments) {
  if (!arguments.model.empty()) {
    const ModelDirectory model = open_model_directory(arguments.model);
    return report(model, model.plan, arguments.tokens, arguments.json);
  }
  const Config config = load_config(arguments.config, arguments.overrides);
  const ModelDirectory model = open_model_directory(config.model.path);
  report(model, plan_of_run(config, model), arguments.tokens, arguments.json);
}

}  // namespace

void add_inspect(CLI::App& program) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = program.add_subcommand(
      "inspect", "Layers, modes, parameters and KV bytes of a model or of a plan, beside the base; loads no weights");
  auto* model =
      command->add_option("--model", arguments->model, "Hugging Face directory, plain or exported by uniattn");
  auto* config = command->add_option("config", arguments->config, "YAML configuration: its plan over its model");
  config->excludes(model);
  command->add_option("overrides", arguments->overrides, "key.path=value, in place of what the file says")
      ->type_name("KEY=VALUE")
      ->needs(config);
  command
      ->add_option("--tokens", arguments->tokens,
                   "Length of the sequence whose cache is counted, as generation keeps it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print the result as one JSON object");
  command->footer("Example: uniattn inspect configs/llama-3.1-8b-pmc.yaml model.path=models/llama-3.1-8b");
  command->callback([arguments] {
    if (arguments->model.empty() && arguments->config.empty())
      fail_usage("inspect needs --model DIR or a configuration");
    run_inspect(*arguments);
  });
}

}  // namespace uniattn
