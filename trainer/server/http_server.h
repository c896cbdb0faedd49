// A model behind OpenAI's HTTP interface: GET /v1/models and /health, POST /v1/completions and /v1/chat/completions.
#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "inference/chat_format.h"
#include "inference/engine_thread.h"

namespace uniattn {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int64_t port = 8000;  // 0: one that is free
  int64_t max_request_bytes = 1 << 20;
  int64_t max_length = 0;    // tokens of prompt and answer; 0: the model's positions
  int64_t max_waiting = 64;  // requests beside those that run
  int64_t timeout = 600;     // seconds for an answer
};

class HttpServer {
 public:
  // Everything passed by reference must outlive this object. `chat` is null for a model without a tokenizer of its own
  // or a usable template: chat completions are refused then.
  HttpServer(const Decoder& model, const Tokenizer& tokenizer, const ChatFormat* chat, std::string model_name,
             std::vector<int64_t> end_tokens, const EngineOptions& engine, const ServerOptions& options);
  ~HttpServer();

  // Binds the address and returns the port. Throws Error when it is taken or is none of this machine's.
  int64_t bind();
  // Serves until stop() is called, from any thread.
  void run();
  void stop();

 private:
  struct Routes;
  std::unique_ptr<Routes> routes_;
};

}  // namespace uniattn
