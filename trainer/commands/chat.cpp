#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "commands/commands.h"
#include "commands/inference_options.h"
#include "inference/chat_format.h"
#include "inference/text_stream.h"
#include "support/error.h"
#include "support/signals.h"

namespace uniattn {
namespace {

struct ChatArguments {
  ModelOptions model;
  std::string chat_template, system;
  int64_t max_new_tokens = 1024;
  SamplingOptions sampling{.temperature = 0.7, .top_k = 0, .top_p = 0.95, .seed = 0};
  EngineOptions engine;
};

// The next line of the person at the terminal; nothing at the end of the input.
std::optional<std::string> read_line() {
  if (isatty(STDIN_FILENO)) fmt::print(stderr, "> ");
  std::string line;
  if (!std::getline(std::cin, line)) return std::nullopt;
  return line;
}

void show(const std::string& piece) {
  fmt::print("{}", piece);
  std::fflush(stdout);
}

std::string answer(Engine& engine, const InferenceModel& model, const ChatFormat& format,
                   const std::vector<Message>& messages, const ChatArguments& arguments) {
  TextStream stream(*model.tokenizer, {});
  std::string text;
  const auto take = [&](const std::string& piece) {
    text += piece;
    show(piece);
  };
  std::vector<int64_t> prompt = format.prompt(messages);
  const int64_t room = model.directory.config.max_positions - static_cast<int64_t>(prompt.size());
  if (room < 1)
    fail("the conversation has {} tokens, the model reads {}: type /new to start over", prompt.size(),
         model.directory.config.max_positions);
  run_to_end(engine, {{std::move(prompt), std::min(arguments.max_new_tokens, room), arguments.sampling,
                       format.stop_ids(model.end_tokens), [&](int64_t token) {
                         take(stream.push(static_cast<int32_t>(token)));
                         return true;
                       }}});
  take(stream.finish() + "\n");
  text.pop_back();
  return text;
}

void run_chat(const ChatArguments& arguments) {
  const InferenceModel model = open_inference_model(arguments.model);
  const ChatFormat format(arguments.chat_template, model.directory.path, *model.tokenizer);
  Engine engine(model.decoder, arguments.engine);
  std::vector<Message> opening;
  if (!arguments.system.empty()) opening.push_back({"system", arguments.system});
  std::vector<Message> messages = opening;
  fmt::print(stderr, "{}, template {}. An empty line or the end of input leaves, /new starts over.\n",
             model.directory.path, format.name());
  while (const auto line = read_line()) {
    if (line->empty()) break;
    if (*line == "/new") {
      messages = opening;
      continue;
    }
    messages.push_back({"user", *line});
    try {
      messages.push_back({"assistant", answer(engine, model, format, messages, arguments)});
    } catch (const UsageError&) {
      throw;
    } catch (const Error& error) {  // the conversation stays as it was before
      fmt::print(stderr, "{}\n", error.what());
      messages.pop_back();
    }
  }
}

}  // namespace

void add_chat(CLI::App& program) {
  auto arguments = std::make_shared<ChatArguments>();
  CLI::App* command = program.add_subcommand("chat", "Talk to a model at the terminal");
  arguments->model.add_to(*command);
  command->add_option("--template", arguments->chat_template,
                      "Chat template (docs/data.md); default: the model's own, else alpaca");
  command->add_option("--system", arguments->system, "A system message before the conversation");
  command->add_option("--max-new-tokens", arguments->max_new_tokens, "Tokens of an answer at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_sampling_options(*command, arguments->sampling);
  add_engine_options(*command, arguments->engine);
  command->footer("Example: uniattn chat --model runs/pmc-uniattn/export");
  command->callback([arguments] { run_chat(*arguments); });
}

}  // namespace uniattn
