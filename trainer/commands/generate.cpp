#include <fmt/ranges.h>

#include <charconv>

#include "commands/commands.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "inference/generator.h"
#include "parallel/device.h"
#include "support/error.h"

namespace uniattn {
namespace {

struct GenerateArguments {
  std::string model, prompt, ids, dtype;
  GenerationOptions options;
  bool json = false;
};

std::vector<int64_t> parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  const char *at = text.data(), *end = at + text.size();
  while (at != end) {
    if (*at == ' ') {
      ++at;
      continue;
    }
    int64_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc{} || (next != end && *next != ' '))
      fail_usage("--ids: expected whitespace-separated token ids, found `{}`", std::string(at, end));
    ids.push_back(id);
    at = next;
  }
  return ids;
}

std::vector<int64_t> encode_prompt(const std::string& prompt, const Tokenizer& tokenizer) {
  std::vector<int64_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  for (const int32_t id : tokenizer.encode(prompt)) ids.push_back(id);
  return ids;
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void run_generate(const GenerateArguments& arguments) {
  const ModelDirectory directory = open_model_directory(arguments.model);
  const bool has_text = !arguments.prompt.empty();
  const auto tokenizer = tokenizer_or_ids_only(directory);
  const std::vector<int64_t> prompt = has_text ? encode_prompt(arguments.prompt, *tokenizer) : parse_ids(arguments.ids);
  const Decoder model = load_decoder(
      directory, parse_dtype(arguments.dtype.empty() ? directory.config.dtype : arguments.dtype), compute_device(0));
  const Generation result = generate(model, prompt, arguments.options);
  nlohmann::ordered_json report{
      {"ids", result.tokens},
      {"prompt_tokens", prompt.size()},
      {"prefill_tokens_per_s", rate(static_cast<int64_t>(prompt.size()), result.prefill_seconds)},
      {"decode_tokens_per_s", rate(result.decode_steps, result.decode_seconds)},
      {"cache_bytes", result.cache_bytes}};
  std::string text = fmt::format("{}", fmt::join(result.tokens, " "));
  if (has_text) {
    text = tokenizer->decode({result.tokens.begin(), result.tokens.end()});
    report["text"] = text;
  }
  print_result(arguments.json, report, text);
}

}  // namespace

void add_generate(CLI::App& program) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = program.add_subcommand("generate", "Continue a prompt, greedily or sampled");
  command->add_option("--model", arguments->model, "Hugging Face directory, plain or exported by uniattn")->required();
  auto* what = command->add_option_group("prompt", "The prompt, one of");
  what->add_option("--prompt", arguments->prompt, "Text; BOS is put before it");
  what->add_option("--ids", arguments->ids, "Whitespace-separated token ids, as they stand");
  what->require_option(1);
  command->add_option("--max-new-tokens", arguments->options.max_new_tokens, "Tokens to generate at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", arguments->options.temperature, "0 is greedy")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", arguments->options.seed, "Of the sampling")->capture_default_str();
  command->add_option("--dtype", arguments->dtype, "float32, bfloat16 or float16 (default: the checkpoint's)");
  command->add_flag("--json", arguments->json, "Print ids, text and speeds as one JSON object");
  command->footer("Example: uniattn generate --model runs/pmc-uniattn/export --prompt 'What is a softmax?'");
  command->callback([arguments] { run_generate(*arguments); });
}

}  // namespace uniattn
