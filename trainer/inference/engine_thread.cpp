#include "inference/engine_thread.h"

#include <utility>

#include "support/error.h"
#include "support/log.h"

namespace uniattn {

TokenQueue::Batch TokenQueue::take(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [&] { return batch_.ended || !batch_.tokens.empty(); });
  Batch taken = batch_;
  batch_.tokens.clear();
  return taken;
}

void TokenQueue::push(int64_t token) {
  const std::lock_guard lock(mutex_);
  batch_.tokens.push_back(token);
  changed_.notify_one();
}

void TokenQueue::end(bool by_length, const std::string& error) {
  const std::lock_guard lock(mutex_);
  batch_.ended = true, batch_.by_length = by_length, batch_.error = error;
  changed_.notify_one();
}

EngineThread::EngineThread(const Decoder& model, const EngineOptions& options, int64_t max_waiting)
    : engine_(model, options), max_waiting_(max_waiting), max_batch_(options.max_batch), thread_([this] { work(); }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::vector<std::shared_ptr<TokenQueue>> EngineThread::submit(std::vector<GenerationRequest> requests) {
  std::vector<std::shared_ptr<TokenQueue>> queues;
  {
    const std::lock_guard lock(mutex_);
    const auto all = static_cast<int64_t>(requests.size() + submissions_.size()) + load_.running + load_.waiting;
    if (all > max_batch_ + max_waiting_) return {};
    for (GenerationRequest& request : requests) {
      queues.push_back(std::make_shared<TokenQueue>());
      request.on_token = [queue = queues.back()](int64_t token) {
        queue->push(token);
        return !queue->cancelled();
      };
      submissions_.push_back({std::move(request), queues.back()});
    }
  }
  wake_.notify_one();
  return queues;
}

EngineThread::Load EngineThread::load() {
  const std::lock_guard lock(mutex_);
  return {load_.running, load_.waiting + static_cast<int64_t>(submissions_.size()), load_.cache_bytes};
}

// Called with the lock.
void EngineThread::take_submissions() {
  for (Submission& submission : submissions_) {
    try {
      answers_[engine_.add(std::move(submission.request))] = submission.queue;
    } catch (const Error& error) {
      submission.queue->end(false, error.what());
    }
  }
  submissions_.clear();
  load_ = {engine_.running(), engine_.waiting(), engine_.allocated_cache_bytes()};
}

void EngineThread::drop_cancelled() {
  std::erase_if(answers_, [&](const auto& answer) {
    if (!answer.second->cancelled()) return false;
    engine_.cancel(answer.first);
    answer.second->end(false);
    return true;
  });
}

void EngineThread::work() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      load_ = {engine_.running(), engine_.waiting(), engine_.allocated_cache_bytes()};
      wake_.wait(lock, [&] { return stopping_ || !submissions_.empty() || !engine_.idle(); });
      take_submissions();
      if (stopping_) break;
    }
    drop_cancelled();
    try {
      for (const Engine::Ended& ended : engine_.step()) {
        answers_.at(ended.request)->end(ended.by_length);
        answers_.erase(ended.request);
      }
    } catch (const std::exception& error) {
      log::error(error.what());
      for (const auto& [number, queue] : answers_) queue->end(false, error.what());
      answers_.clear();
    }
  }
  for (const auto& [number, queue] : answers_) queue->end(false, "the server is shutting down");
}

}  // namespace uniattn
