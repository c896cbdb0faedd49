#include "inference/engine.h"

#include <algorithm>

#include "support/error.h"

namespace uniattn {

void EngineOptions::validate() const {
  if (max_batch < 1) fail_usage("max_batch is {}, expected at least 1 sequence", max_batch);
  if (prefill_chunk < 1) fail_usage("prefill_chunk is {}, expected at least 1 token", prefill_chunk);
}

struct Engine::Answer {
  int64_t number, sequence = -1;
  GenerationRequest request;
  Sampler sampler;
  size_t prompt_read = 0;  // tokens of the prompt that the model has read
  int64_t last_token = -1, tokens = 0;
  enum class State { prefill, decode, stopped, full } state = State::prefill;

  bool ended() const { return state == State::stopped || state == State::full; }
};

Engine::Engine(const Decoder& model, const EngineOptions& options) : model_(model), options_(options), decoder_(model) {
  options.validate();
}

Engine::~Engine() = default;

int64_t Engine::add(GenerationRequest request) {
  if (request.prompt.empty()) fail_usage("the prompt is empty; give at least one token");
  for (const int64_t id : request.prompt)
    if (id < 0 || id >= model_.config.vocab_size)
      fail_usage("token id {} is outside the vocabulary of {}", id, model_.config.vocab_size);
  if (request.max_new_tokens < 1) fail_usage("max_new_tokens is {}, expected at least 1", request.max_new_tokens);
  request.sampling.validate();
  const Sampler sampler(request.sampling);
  waiting_.push_back(
      std::make_unique<Answer>(Answer{.number = next_, .request = std::move(request), .sampler = sampler}));
  return next_++;
}

void Engine::admit() {
  while (!waiting_.empty() && running() < options_.max_batch) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    running_.back()->sequence = decoder_.cache().open();
  }
}

at::Tensor Engine::read(const std::vector<TokenSpan>& spans) {
  at::Tensor logits = decoder_.read(spans);
  peak_cache_bytes_ = std::max(peak_cache_bytes_, decoder_.cache().bytes_used());
  return logits;
}

void Engine::advance(Answer& answer, const at::Tensor& logits) {
  const int64_t token = answer.sampler.choose({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())});
  const auto& stops = answer.request.stop_ids;
  answer.state = Answer::State::decode;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    answer.state = Answer::State::stopped;
    return;
  }
  answer.last_token = token;
  ++answer.tokens;
  if (answer.request.on_token && !answer.request.on_token(token)) {
    answer.state = Answer::State::stopped;
  } else if (answer.tokens == answer.request.max_new_tokens) {
    answer.state = Answer::State::full;
  }
}

// The first prompts that fit into the chunk, the last of them cut.
void Engine::prefill() {
  std::vector<TokenSpan> spans;
  std::vector<Answer*> answers;
  auto room = static_cast<size_t>(options_.prefill_chunk);
  for (const auto& answer : running_) {
    if (answer->state != Answer::State::prefill || room == 0) continue;
    const auto& prompt = answer->request.prompt;
    const size_t count = std::min(room, prompt.size() - answer->prompt_read);
    const auto begin = prompt.begin() + static_cast<std::ptrdiff_t>(answer->prompt_read);
    spans.push_back({answer->sequence, {begin, begin + static_cast<std::ptrdiff_t>(count)}});
    answers.push_back(answer.get());
    room -= count;
  }
  if (spans.empty()) return;
  const at::Tensor logits = read(spans);
  for (size_t i = 0; i < spans.size(); ++i) {
    answers[i]->prompt_read += spans[i].tokens.size();
    if (answers[i]->prompt_read == answers[i]->request.prompt.size())
      advance(*answers[i], logits[static_cast<int64_t>(i)]);
  }
}

void Engine::decode() {
  std::vector<TokenSpan> spans;
  std::vector<Answer*> answers;
  for (const auto& answer : running_) {
    if (answer->state != Answer::State::decode) continue;
    spans.push_back({answer->sequence, {answer->last_token}});
    answers.push_back(answer.get());
  }
  if (spans.empty()) return;
  const at::Tensor logits = read(spans);
  for (size_t i = 0; i < spans.size(); ++i) advance(*answers[i], logits[static_cast<int64_t>(i)]);
}

std::vector<Engine::Ended> Engine::collect_ended() {
  std::vector<Ended> ended;
  std::erase_if(running_, [&](const std::unique_ptr<Answer>& answer) {
    if (!answer->ended()) return false;
    decoder_.cache().close(answer->sequence);
    ended.push_back({answer->number, answer->state == Answer::State::full});
    return true;
  });
  return ended;
}

void Engine::end_all() {
  for (const auto& answer : running_) decoder_.cache().close(answer->sequence);
  running_.clear();
  waiting_.clear();
}

std::vector<Engine::Ended> Engine::step() {
  admit();
  try {
    prefill();
    std::vector<Ended> ended = collect_ended();
    decode();
    for (const Ended& more : collect_ended()) ended.push_back(more);
    return ended;
  } catch (...) {
    end_all();  // a pass that broke off leaves no sequence in a known state
    throw;
  }
}

void Engine::cancel(int64_t request) {
  const auto is_it = [&](const std::unique_ptr<Answer>& answer) { return answer->number == request; };
  std::erase_if(waiting_, is_it);
  std::erase_if(running_, [&](const std::unique_ptr<Answer>& answer) {
    if (!is_it(answer)) return false;
    decoder_.cache().close(answer->sequence);
    return true;
  });
}

std::vector<bool> run_to_end(Engine& engine, std::vector<GenerationRequest> requests) {
  std::vector<bool> by_length(requests.size());
  std::vector<int64_t> numbers;
  for (GenerationRequest& request : requests) numbers.push_back(engine.add(std::move(request)));
  while (!engine.idle())
    for (const Engine::Ended& ended : engine.step())
      by_length[static_cast<size_t>(std::find(numbers.begin(), numbers.end(), ended.request) - numbers.begin())] =
          ended.by_length;
  return by_length;
}

}  // namespace uniattn
