// One HTTP answer in the making: tokens become text, text becomes the JSON that was asked for.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "inference/engine_thread.h"
#include "inference/text_stream.h"
#include "server/openai_api.h"

namespace uniattn {

class AnswerStream {
 public:
  // One queue per choice. `prompt_tokens` of all choices together.
  AnswerStream(AnswerHeader header, const CompletionRequest& request, const Tokenizer& tokenizer,
               const std::vector<std::shared_ptr<TokenQueue>>& queues, int64_t prompt_tokens,
               std::chrono::steady_clock::time_point deadline);
  // Cancels what still runs.
  ~AnswerStream();

  // Waits a moment for tokens. Returns the bytes to send now: parts of the answer in a stream, all of it at its end
  // otherwise. Past the deadline the answer ends as it is, as if its length had been reached.
  std::string take();
  bool finished() const { return finished_; }
  // The engine gave up: the connection is to be broken off, not ended as if the answer were whole.
  bool failed() const { return failed_; }

 private:
  struct Choice {
    std::shared_ptr<TokenQueue> queue;
    TextStream stream;
    std::string text{}, finish_reason{};
    bool started = false;
  };
  std::string advance(int64_t index, bool past_deadline);
  std::string ending() const;

  AnswerHeader header_;
  bool streams_, include_usage_;
  std::vector<Choice> choices_;
  Usage usage_;
  std::chrono::steady_clock::time_point deadline_;
  bool finished_ = false, failed_ = false;
};

}  // namespace uniattn
