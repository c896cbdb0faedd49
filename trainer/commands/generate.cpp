#include <fmt/ranges.h>

#include <charconv>
#include <chrono>
#include <cstdio>

#include "commands/commands.h"
#include "commands/inference_options.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "inference/engine.h"
#include "inference/text_stream.h"
#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

struct GenerateArguments {
  ModelOptions model;
  std::vector<std::string> prompts, ids, stops;
  int64_t max_new_tokens = 64;
  SamplingOptions sampling;
  EngineOptions engine;
  bool ignore_eos = false, json = false;
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

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// One prompt and what became of it.
struct Generated {
  std::vector<int64_t> prompt, ids;
  std::string text;
  std::optional<TextStream> stream;  // where the prompt is text
};

void print_piece(const std::string& piece) {
  fmt::print("{}", piece);
  std::fflush(stdout);
}

ordered_json describe(const Generated& one, bool by_length) {
  ordered_json entry{{"ids", one.ids}};
  if (one.stream) entry["text"] = one.text;
  entry["prompt_tokens"] = one.prompt.size();
  entry["finish_reason"] = by_length ? "length" : "stop";
  return entry;
}

std::vector<Generated> read_prompts(const GenerateArguments& arguments, const Tokenizer& tokenizer) {
  std::vector<Generated> all;
  for (const std::string& prompt : arguments.prompts)
    all.push_back({encode_prompt(prompt, tokenizer), {}, {}, TextStream(tokenizer, arguments.stops)});
  for (const std::string& ids : arguments.ids) all.push_back({parse_ids(ids), {}, {}, std::nullopt});
  return all;
}

void run_generate(const GenerateArguments& arguments) {
  const InferenceModel model = open_inference_model(arguments.model);
  std::vector<Generated> all = read_prompts(arguments, *model.tokenizer);
  const bool streams = all.size() == 1 && all[0].stream && !arguments.json;
  Engine engine(model.decoder, arguments.engine);
  const Stopwatch clock;
  double prefill_seconds = 0;
  int64_t decoded = 0, prompt_tokens = 0;
  std::vector<GenerationRequest> requests;
  for (Generated& one : all) {
    prompt_tokens += static_cast<int64_t>(one.prompt.size());
    requests.push_back({one.prompt, arguments.max_new_tokens, arguments.sampling,
                        arguments.ignore_eos ? std::vector<int64_t>{} : model.end_tokens, [&](int64_t token) {
                          (one.ids.empty() ? prefill_seconds = clock.seconds() : ++decoded);
                          one.ids.push_back(token);
                          if (!one.stream) return true;
                          const std::string piece = one.stream->push(static_cast<int32_t>(token));
                          one.text += piece;
                          if (streams) print_piece(piece);
                          return !one.stream->stopped();
                        }});
  }
  const std::vector<bool> by_length = run_to_end(engine, std::move(requests));
  const double decode_seconds = clock.seconds() - prefill_seconds;
  ordered_json generations = ordered_json::array();
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string rest = all[i].stream ? all[i].stream->finish() : "";
    all[i].text += rest;
    if (streams) print_piece(rest);
    generations.push_back(describe(all[i], by_length[i]));
    text += (i > 0 ? "\n" : "") + (all[i].stream ? all[i].text : fmt::format("{}", fmt::join(all[i].ids, " ")));
  }
  ordered_json report = all.size() == 1 ? generations[0] : ordered_json{{"generations", generations}};
  report["prefill_tokens_per_s"] = rate(prompt_tokens, prefill_seconds);
  report["decode_tokens_per_s"] = rate(decoded, decode_seconds);
  report["cache_bytes"] = engine.peak_cache_bytes();
  print_result(arguments.json, report, streams ? "" : text);
}

}  // namespace

void add_generate(CLI::App& program) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = program.add_subcommand("generate", "Continue prompts, greedily or sampled");
  arguments->model.add_to(*command);
  auto* what = command->add_option_group("prompts", "One or more prompts, generated as one batch");
  what->add_option("--prompt", arguments->prompts, "Text; BOS is put before it. Repeat it for a batch")
      ->allow_extra_args(false);
  what->add_option("--ids", arguments->ids, "Whitespace-separated token ids, as they stand. Repeat it for a batch")
      ->allow_extra_args(false);
  what->require_option(1, 2);
  command->add_option("--max-new-tokens", arguments->max_new_tokens, "Tokens to generate at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_sampling_options(*command, arguments->sampling);
  command->add_option("--stop", arguments->stops, "Text that ends an answer, and is not part of it. May be repeated")
      ->allow_extra_args(false)
      ->check([](const std::string& stop) { return stop.empty() ? "a stop string must not be empty" : ""; });
  command->add_flag("--ignore-eos", arguments->ignore_eos, "Go on after the model's end token, for measurements");
  add_engine_options(*command, arguments->engine);
  command->add_flag("--json", arguments->json, "Print ids, text and speeds as one JSON object");
  command->footer("Example: uniattn generate --model runs/pmc-uniattn/export --prompt 'What is a softmax?'");
  command->callback([arguments] { run_generate(*arguments); });
}

}  // namespace uniattn
