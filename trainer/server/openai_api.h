// The JSON of OpenAI's completions and chat completions, as far as a single local model can honour it.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "data/templates.h"
#include "inference/sampler.h"

namespace uniattn {

// A request that cannot be served as it stands. `status` is HTTP's, `param` the field that is to blame.
struct ApiError {
  int status;
  std::string message, type, param{}, code{};
};

struct CompletionRequest {
  using Prompt = std::variant<std::string, std::vector<int64_t>>;  // text, or token ids as they stand
  std::vector<Prompt> prompts;                                     // completions
  std::vector<Message> messages;                                   // chat completions
  std::optional<int64_t> max_tokens;
  SamplingOptions sampling;
  std::vector<std::string> stops;
  bool stream = false, include_usage = false;
};

// Throws ApiError for a field of the wrong type or range, and for one that asks for what is not there (several choices,
// log probabilities, tools). Unknown fields are ignored, as clients send what other servers know.
CompletionRequest parse_completion(const std::string& body, bool chat);

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0;
};

// What all parts of an answer have in common.
struct AnswerHeader {
  bool chat;
  std::string id, model;
  int64_t created;  // seconds since 1970
};

// A whole choice; `finish_reason`: stop | length.
nlohmann::ordered_json describe_choice(const AnswerHeader& header, int64_t index, const std::string& text,
                                       const std::string& finish_reason);
nlohmann::ordered_json describe_answer(const AnswerHeader& header, const nlohmann::ordered_json& choices,
                                       const Usage& usage);
// A piece of a streamed choice: the first one of a chat names the role; `finish_reason` is empty but for the last.
nlohmann::ordered_json describe_chunk(const AnswerHeader& header, int64_t index, const std::string& piece, bool first,
                                      const std::string& finish_reason);
// The last chunk of a stream that was asked for its usage.
nlohmann::ordered_json describe_usage_chunk(const AnswerHeader& header, const Usage& usage);
nlohmann::ordered_json describe_error(const ApiError& error);

}  // namespace uniattn
