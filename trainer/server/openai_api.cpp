#include "server/openai_api.h"

#include <random>

#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kMostStops = 16;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw ApiError{400, message, "invalid_request_error", param};
}

// The value of a field, or nullptr where it is absent or null.
const json* field(const json& body, const char* name) {
  const auto found = body.find(name);
  return found == body.end() || found->is_null() ? nullptr : &*found;
}

template <class T>
std::optional<T> number(const json& body, const char* name) {
  const json* value = field(body, name);
  if (value == nullptr) return std::nullopt;
  const bool fits = std::is_floating_point_v<T> ? value->is_number() : value->is_number_integer();
  if (!fits) refuse(name, fmt::format("`{}`: expected a number, got {}", name, value->dump()));
  return value->get<T>();
}

bool flag(const json& body, const char* name) {
  const json* value = field(body, name);
  if (value != nullptr && !value->is_boolean())
    refuse(name, fmt::format("`{}`: expected true or false, got {}", name, value->dump()));
  return value != nullptr && value->get<bool>();
}

std::vector<int64_t> token_ids(const json& value) {
  for (const json& id : value)
    if (!id.is_number_integer()) refuse("prompt", fmt::format("`prompt`: expected token ids, got {}", id.dump()));
  return value.get<std::vector<int64_t>>();
}

std::vector<CompletionRequest::Prompt> parse_prompts(const json& body) {
  const json* prompt = field(body, "prompt");
  if (prompt == nullptr) refuse("prompt", "`prompt` is missing: expected text or token ids");
  if (prompt->is_string()) return {prompt->get<std::string>()};
  if (!prompt->is_array() || prompt->empty())
    refuse("prompt", "`prompt`: expected text, a list of texts, token ids or a list of lists of them");
  if (prompt->front().is_number()) return {token_ids(*prompt)};
  std::vector<CompletionRequest::Prompt> prompts;
  for (const json& one : *prompt) {
    if (one.is_string()) {
      prompts.emplace_back(one.get<std::string>());
    } else if (one.is_array()) {
      prompts.emplace_back(token_ids(one));
    } else {
      refuse("prompt", fmt::format("`prompt`: expected text or token ids, got {}", one.dump()));
    }
  }
  return prompts;
}

std::string message_text(const json& message) {
  const json* content = field(message, "content");
  if (content != nullptr && content->is_string()) return content->get<std::string>();
  if (content == nullptr || !content->is_array()) refuse("messages", "a message's `content` is not text");
  std::string text;
  for (const json& part : *content) {
    if (!part.is_object() || part.value("type", json()) != "text" || !part.value("text", json()).is_string())
      refuse("messages", fmt::format("a part of a message is not text: {}", part.dump()));
    text += part["text"].get<std::string>();
  }
  return text;
}

std::vector<Message> parse_messages(const json& body) {
  const json* messages = field(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty())
    refuse("messages", "`messages`: expected a list of messages that is not empty");
  std::vector<Message> result;
  for (const json& message : *messages) {
    if (!message.is_object() || !message.value("role", json()).is_string())
      refuse("messages", "a message has no `role`: expected system, user or assistant");
    const auto role = message["role"].get<std::string>();
    result.push_back({role == "developer" ? "system" : role, message_text(message)});
  }
  return result;
}

std::vector<std::string> parse_stops(const json& body) {
  const json* stop = field(body, "stop");
  if (stop == nullptr) return {};
  std::vector<std::string> stops;
  for (const json& one : stop->is_array() ? *stop : json::array({*stop})) {
    if (!one.is_string() || one.get<std::string>().empty())
      refuse("stop", fmt::format("`stop`: expected text that is not empty, got {}", one.dump()));
    stops.push_back(one.get<std::string>());
  }
  if (stops.size() > kMostStops) refuse("stop", fmt::format("`stop`: at most {} strings", kMostStops));
  return stops;
}

// Fields whose meaning would be lost without a word.
void refuse_unsupported(const json& body) {
  for (const char* name : {"n", "best_of"})
    if (number<int64_t>(body, name).value_or(1) != 1) refuse(name, fmt::format("`{}` must be 1", name));
  for (const char* name : {"logprobs", "tools", "functions", "suffix", "logit_bias", "top_logprobs"}) {
    const json* value = field(body, name);
    if (value != nullptr && *value != json(false) && !value->empty())
      refuse(name, fmt::format("`{}` is not supported", name));
  }
  for (const char* name : {"presence_penalty", "frequency_penalty"})
    if (number<double>(body, name).value_or(0) != 0) refuse(name, fmt::format("`{}` is not supported", name));
  if (flag(body, "echo")) refuse("echo", "`echo` is not supported");
}

SamplingOptions parse_sampling(const json& body) {
  SamplingOptions sampling{.temperature = number<double>(body, "temperature").value_or(1),
                           .top_k = number<int64_t>(body, "top_k").value_or(0),
                           .top_p = number<double>(body, "top_p").value_or(1),
                           .seed = 0};
  const auto seed = number<int64_t>(body, "seed");
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : std::random_device()();
  try {
    sampling.validate();
  } catch (const UsageError& error) {
    refuse("", error.what());
  }
  return sampling;
}

ordered_json header_json(const AnswerHeader& header, const char* object) {
  return {{"id", header.id}, {"object", object}, {"created", header.created}, {"model", header.model}};
}

ordered_json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

const char* chunk_object(const AnswerHeader& header) {
  return header.chat ? "chat.completion.chunk" : "text_completion";
}

}  // namespace

CompletionRequest parse_completion(const std::string& body, bool chat) {
  const json parsed = json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) refuse("", "the body is not a JSON object");
  refuse_unsupported(parsed);
  CompletionRequest request;
  chat ? void(request.messages = parse_messages(parsed)) : void(request.prompts = parse_prompts(parsed));
  request.max_tokens = number<int64_t>(parsed, "max_completion_tokens");
  if (!request.max_tokens) request.max_tokens = number<int64_t>(parsed, "max_tokens");
  if (request.max_tokens && *request.max_tokens < 1) refuse("max_tokens", "`max_tokens` must be at least 1");
  request.sampling = parse_sampling(parsed);
  request.stops = parse_stops(parsed);
  request.stream = flag(parsed, "stream");
  if (const json* options = field(parsed, "stream_options"); options != nullptr) {
    if (!options->is_object()) refuse("stream_options", "`stream_options`: expected an object");
    request.include_usage = flag(*options, "include_usage");
  }
  return request;
}

ordered_json describe_choice(const AnswerHeader& header, int64_t index, const std::string& text,
                             const std::string& finish_reason) {
  ordered_json choice{{"index", index}};
  if (header.chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason;
  return choice;
}

ordered_json describe_answer(const AnswerHeader& header, const ordered_json& choices, const Usage& usage) {
  ordered_json answer = header_json(header, header.chat ? "chat.completion" : "text_completion");
  answer["choices"] = choices;
  answer["usage"] = usage_json(usage);
  return answer;
}

ordered_json describe_chunk(const AnswerHeader& header, int64_t index, const std::string& piece, bool first,
                            const std::string& finish_reason) {
  ordered_json choice{{"index", index}};
  if (header.chat) {
    choice["delta"] = ordered_json::object();
    if (first) choice["delta"]["role"] = "assistant";
    if (first || !piece.empty()) choice["delta"]["content"] = piece;
  } else {
    choice["text"] = piece;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason.empty() ? ordered_json() : ordered_json(finish_reason);
  ordered_json chunk = header_json(header, chunk_object(header));
  chunk["choices"] = ordered_json::array({choice});
  return chunk;
}

ordered_json describe_usage_chunk(const AnswerHeader& header, const Usage& usage) {
  ordered_json chunk = header_json(header, chunk_object(header));
  chunk["choices"] = ordered_json::array();
  chunk["usage"] = usage_json(usage);
  return chunk;
}

ordered_json describe_error(const ApiError& error) {
  const auto or_null = [](const std::string& text) { return text.empty() ? ordered_json() : ordered_json(text); };
  return {{"error",
           {{"message", error.message},
            {"type", error.type},
            {"param", or_null(error.param)},
            {"code", or_null(error.code)}}}};
}

}  // namespace uniattn
