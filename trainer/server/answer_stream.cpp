#include "server/answer_stream.h"

#include <algorithm>

namespace uniattn {
namespace {

constexpr std::chrono::milliseconds kPatience(50);  // between two looks at whether the client is still there

std::string as_event(const nlohmann::ordered_json& chunk) {
  return "data: " + chunk.dump() + "\n\n";
}

}  // namespace

AnswerStream::AnswerStream(AnswerHeader header, const CompletionRequest& request, const Tokenizer& tokenizer,
                           const std::vector<std::shared_ptr<TokenQueue>>& queues, int64_t prompt_tokens,
                           std::chrono::steady_clock::time_point deadline)
    : header_(std::move(header)),
      streams_(request.stream),
      include_usage_(request.include_usage),
      usage_{prompt_tokens, 0},
      deadline_(deadline) {
  for (const auto& queue : queues) choices_.push_back({queue, TextStream(tokenizer, request.stops)});
}

AnswerStream::~AnswerStream() {
  for (const Choice& choice : choices_) choice.queue->cancel();
}

std::string AnswerStream::take() {
  std::string out;
  const bool past_deadline = std::chrono::steady_clock::now() > deadline_;
  for (size_t i = 0; i < choices_.size(); ++i)
    if (choices_[i].finish_reason.empty()) out += advance(static_cast<int64_t>(i), past_deadline);
  finished_ = std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return !c.finish_reason.empty(); });
  if (finished_) out += ending();
  return out;
}

// What has come for one choice.
std::string AnswerStream::advance(int64_t index, bool past_deadline) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  const TokenQueue::Batch batch = choice.queue->take(kPatience);
  failed_ |= !batch.error.empty();
  std::string piece;
  for (const int64_t token : batch.tokens) {
    if (choice.stream.stopped()) break;
    piece += choice.stream.push(static_cast<int32_t>(token));
    ++usage_.completion_tokens;
  }
  if (choice.stream.stopped() || batch.ended || past_deadline) {
    choice.finish_reason = choice.stream.stopped() || (batch.ended && !batch.by_length) ? "stop" : "length";
    piece += choice.stream.finish();
    choice.queue->cancel();
  }
  choice.text += piece;
  if (!streams_) return "";
  std::string out;
  if (!piece.empty() || !choice.started) out = as_event(describe_chunk(header_, index, piece, !choice.started, ""));
  choice.started = true;
  if (!choice.finish_reason.empty()) out += as_event(describe_chunk(header_, index, "", false, choice.finish_reason));
  return out;
}

std::string AnswerStream::ending() const {
  if (streams_) return (include_usage_ ? as_event(describe_usage_chunk(header_, usage_)) : "") + "data: [DONE]\n\n";
  nlohmann::ordered_json choices = nlohmann::ordered_json::array();
  for (size_t i = 0; i < choices_.size(); ++i)
    choices.push_back(describe_choice(header_, static_cast<int64_t>(i), choices_[i].text, choices_[i].finish_reason));
  return describe_answer(header_, choices, usage_).dump();
}

}  // namespace uniattn
