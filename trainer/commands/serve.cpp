#include <filesystem>
#include <thread>

#include "commands/commands.h"
#include "commands/inference_options.h"
#include "server/http_server.h"
#include "support/error.h"
#include "support/log.h"
#include "support/signals.h"

namespace uniattn {
namespace {

struct ServeArguments {
  ModelOptions model;
  std::string chat_template, name;
  EngineOptions engine;
  ServerOptions server;
};

// A model without a tokenizer, or of whose template a token is missing, still completes.
std::optional<ChatFormat> chat_format(const ServeArguments& arguments, const InferenceModel& model) {
  try {
    return ChatFormat(arguments.chat_template, model.directory.path, *model.tokenizer);
  } catch (const Error& error) {
    if (!arguments.chat_template.empty()) throw;
    log::warn(fmt::format("no chat completions: {}", error.what()));
    return std::nullopt;
  }
}

std::string model_name(const ServeArguments& arguments) {
  if (!arguments.name.empty()) return arguments.name;
  return std::filesystem::weakly_canonical(arguments.model.path).filename().string();
}

void run_serve(const ServeArguments& arguments) {
  const InferenceModel model = open_inference_model(arguments.model);
  const std::optional<ChatFormat> chat = chat_format(arguments, model);
  watch_signals();
  HttpServer server(model.decoder, *model.tokenizer, chat ? &*chat : nullptr, model_name(arguments), model.end_tokens,
                    arguments.engine, arguments.server);
  const int64_t port = server.bind();
  log::info(fmt::format("{} on http://{}:{}/v1{}", model_name(arguments), arguments.server.host, port,
                        chat ? ", chat template " + chat->name() : ""));
  std::thread listener([&] { server.run(); });
  while (!stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  log::info("stopping");
  server.stop();
  listener.join();
}

}  // namespace

void add_serve(CLI::App& program) {
  auto arguments = std::make_shared<ServeArguments>();
  CLI::App* command = program.add_subcommand("serve", "Serve a model over HTTP, with OpenAI's interface");
  arguments->model.add_to(*command);
  ServerOptions& server = arguments->server;
  command->add_option("--host", server.host, "Address to listen on; the default is reached from this machine alone")
      ->capture_default_str();
  command->add_option("--port", server.port, "Port to listen on; 0: any that is free")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->add_option("--name", arguments->name, "The model's name to clients (default: its directory's)");
  command->add_option("--template", arguments->chat_template,
                      "Chat template (docs/data.md); default: the model's own, else alpaca");
  command->add_option("--max-length", server.max_length, "Tokens of prompt and answer (default: the model's positions)")
      ->check(CLI::PositiveNumber);
  command->add_option("--max-waiting", server.max_waiting, "Requests that may wait; further ones are refused with 429")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--max-request-bytes", server.max_request_bytes, "Size of a request's body")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--timeout", server.timeout, "Seconds after which an answer ends as it is")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_engine_options(*command, arguments->engine);
  command->footer("Example: uniattn serve --model runs/pmc-uniattn/export --port 8000");
  command->callback([arguments] { run_serve(*arguments); });
}

}  // namespace uniattn
