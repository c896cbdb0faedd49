#include "server/http_server.h"

#include <httplib.h>

#include <random>

#include "server/answer_stream.h"
#include "server/openai_api.h"
#include "support/error.h"
#include "support/log.h"

namespace uniattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultCompletion = 16;  // tokens, as OpenAI has it; chat answers may fill the length
constexpr int64_t kSpareThreads = 8;        // for requests that are refused or need no engine

std::string random_id(const char* prefix) {
  static std::atomic<uint64_t> counter = std::random_device()();
  return fmt::format("{}-{:016x}", prefix, ++counter * 0x9e3779b97f4a7c15u);
}

void send_error(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  if (error.status == 429 || error.status == 503) response.set_header("Retry-After", "1");
  response.set_content(describe_error(error).dump(), "application/json");
}

}  // namespace

struct HttpServer::Routes {
  const Decoder& model;
  const Tokenizer& tokenizer;
  const ChatFormat* chat;
  std::string model_name;
  std::vector<int64_t> end_tokens;
  ServerOptions options;
  EngineThread engine;
  httplib::Server http{};
  std::atomic<bool> stopping = false;

  void install(const EngineOptions& engine_options);
  std::vector<int64_t> encode(const CompletionRequest::Prompt& prompt) const;
  std::vector<GenerationRequest> generation_requests(const CompletionRequest& request, bool is_chat) const;
  void complete(const httplib::Request& request, httplib::Response& response, bool is_chat);
  void describe_models(httplib::Response& response) const;
  void describe_health(httplib::Response& response);
};

std::vector<int64_t> HttpServer::Routes::encode(const CompletionRequest::Prompt& prompt) const {
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&prompt)) return *ids;
  std::vector<int64_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  for (const int32_t id : tokenizer.encode(std::get<std::string>(prompt))) ids.push_back(id);
  return ids;
}

std::vector<GenerationRequest> HttpServer::Routes::generation_requests(const CompletionRequest& request,
                                                                       bool is_chat) const {
  std::vector<std::vector<int64_t>> prompts;
  if (is_chat) {
    prompts.push_back(chat->prompt(request.messages));
  } else {
    for (const auto& prompt : request.prompts) prompts.push_back(encode(prompt));
  }
  std::vector<GenerationRequest> result;
  for (auto& prompt : prompts) {
    const auto length = static_cast<int64_t>(prompt.size());
    if (prompt.empty()) throw ApiError{400, "the prompt has no tokens", "invalid_request_error", "prompt"};
    for (const int64_t id : prompt)
      if (id < 0 || id >= model.config.vocab_size)
        throw ApiError{400, fmt::format("token id {} is outside the vocabulary of {}", id, model.config.vocab_size),
                       "invalid_request_error", "prompt"};
    const int64_t answer = request.max_tokens.value_or(is_chat ? options.max_length - length : kDefaultCompletion);
    if (answer < 1 || answer > options.max_length - length)
      throw ApiError{400,
                     fmt::format("the prompt has {} tokens and {} are asked for; this server allows {} together",
                                 length, std::max<int64_t>(answer, 1), options.max_length),
                     "invalid_request_error", "messages", "context_length_exceeded"};
    result.push_back(
        {std::move(prompt), answer, request.sampling, is_chat ? chat->stop_ids(end_tokens) : end_tokens, {}});
  }
  return result;
}

void HttpServer::Routes::complete(const httplib::Request& request, httplib::Response& response, bool is_chat) {
  const auto deadline = Clock::now() + std::chrono::seconds(options.timeout);
  if (is_chat && chat == nullptr)
    throw ApiError{400, "this model has no chat template: use /v1/completions", "invalid_request_error"};
  const CompletionRequest asked = parse_completion(request.body, is_chat);
  std::vector<GenerationRequest> requests = generation_requests(asked, is_chat);
  int64_t prompt_tokens = 0;
  for (const GenerationRequest& one : requests) prompt_tokens += static_cast<int64_t>(one.prompt.size());
  if (stopping) throw ApiError{503, "the server is shutting down", "server_error"};
  const auto queues = engine.submit(std::move(requests));
  if (queues.empty()) throw ApiError{429, "too many requests are waiting: try again", "rate_limit_error"};
  const auto now =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  const AnswerHeader header{is_chat, random_id(is_chat ? "chatcmpl" : "cmpl"), model_name, now.count()};
  const auto stream = std::make_shared<AnswerStream>(header, asked, tokenizer, queues, prompt_tokens, deadline);
  // Called again and again until the answer is finished; a client that has gone ends it, which cancels the rest.
  response.set_chunked_content_provider(asked.stream ? "text/event-stream" : "application/json",
                                        [stream](size_t, httplib::DataSink& sink) {
                                          const std::string bytes = stream->take();
                                          if (stream->failed() || !sink.is_writable()) return false;
                                          if (!bytes.empty()) sink.write(bytes.data(), bytes.size());
                                          if (stream->finished()) sink.done();
                                          return true;
                                        });
}

void HttpServer::Routes::describe_models(httplib::Response& response) const {
  const nlohmann::ordered_json entry{{"id", model_name},
                                     {"object", "model"},
                                     {"created", 0},
                                     {"owned_by", "uniattn"},
                                     {"max_length", options.max_length}};
  response.set_content(nlohmann::ordered_json{{"object", "list"}, {"data", {entry}}}.dump(), "application/json");
}

void HttpServer::Routes::describe_health(httplib::Response& response) {
  const EngineThread::Load load = engine.load();
  const nlohmann::ordered_json status{
      {"status", "ok"}, {"running", load.running}, {"waiting", load.waiting}, {"cache_bytes", load.cache_bytes}};
  response.set_content(status.dump(), "application/json");
}

void HttpServer::Routes::install(const EngineOptions& engine_options) {
  // A thread for each request that may run or wait: none of them is kept from being refused.
  const auto threads = static_cast<size_t>(engine_options.max_batch + options.max_waiting + kSpareThreads);
  http.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
  // The library's own options would let a second server share the port without a word.
  http.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  http.set_payload_max_length(static_cast<size_t>(options.max_request_bytes));
  http.set_read_timeout(10);
  http.set_write_timeout(10);
  http.set_keep_alive_timeout(2);
  http.set_tcp_nodelay(true);
  http.Get("/health", [this](const auto&, auto& response) { describe_health(response); });
  http.Get("/v1/models", [this](const auto&, auto& response) { describe_models(response); });
  const auto handler = [this](bool is_chat) {
    return [this, is_chat](const httplib::Request& request, httplib::Response& response) {
      try {
        complete(request, response, is_chat);
      } catch (const ApiError& error) {
        send_error(response, error);
      } catch (const Error& error) {  // a conversation that the template cannot express, text that is not UTF-8
        send_error(response, {400, error.what(), "invalid_request_error"});
      }
    };
  };
  http.Post("/v1/completions", handler(false));
  http.Post("/v1/chat/completions", handler(true));
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    const std::string message = response.status == 404 ? fmt::format("there is no {} {}", request.method, request.path)
                                : response.status == 413 ? "the request is too large"
                                                         : "the request cannot be read";
    send_error(response, {response.status, message, "invalid_request_error"});
  });
}

HttpServer::HttpServer(const Decoder& model, const Tokenizer& tokenizer, const ChatFormat* chat, std::string model_name,
                       std::vector<int64_t> end_tokens, const EngineOptions& engine, const ServerOptions& options)
    : routes_(new Routes{model, tokenizer, chat, std::move(model_name), std::move(end_tokens), options,
                         EngineThread(model, engine, options.max_waiting)}) {
  if (routes_->options.max_length <= 0) routes_->options.max_length = model.config.max_positions;
  routes_->install(engine);
}

HttpServer::~HttpServer() = default;

int64_t HttpServer::bind() {
  const ServerOptions& options = routes_->options;
  const int port = options.port == 0 ? routes_->http.bind_to_any_port(options.host.c_str())
                                     : (routes_->http.bind_to_port(options.host.c_str(), static_cast<int>(options.port))
                                            ? static_cast<int>(options.port)
                                            : -1);
  if (port < 0)
    fail("cannot listen on {}:{}: the port is taken, or the address is none of this machine's", options.host,
         options.port);
  return port;
}

void HttpServer::run() {
  routes_->http.listen_after_bind();
}

void HttpServer::stop() {
  routes_->stopping = true;
  routes_->http.stop();
}

}  // namespace uniattn
