// The engine on a thread of its own, for callers on many threads.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "inference/engine.h"

namespace uniattn {

// The tokens of one answer on their way from the engine to the one who asked.
class TokenQueue {
 public:
  struct Batch {
    std::vector<int64_t> tokens;  // since the last call
    bool ended = false, by_length = false;
    std::string error;  // why the engine gave up; empty as a rule
  };
  // Waits at most `patience` for something to happen.
  Batch take(std::chrono::milliseconds patience);
  // The answer is not wanted any more.
  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

  void push(int64_t token);
  void end(bool by_length, const std::string& error = "");

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Batch batch_;
  std::atomic<bool> cancelled_ = false;
};

class EngineThread {
 public:
  // At most `max_waiting` requests wait beside those that run. The model must outlive this object.
  EngineThread(const Decoder& model, const EngineOptions& options, int64_t max_waiting);
  // Ends all answers.
  ~EngineThread();

  // All of the requests or none of them: nothing when they do not fit into the queue. Their on_token is set here.
  std::vector<std::shared_ptr<TokenQueue>> submit(std::vector<GenerationRequest> requests);

  struct Load {
    int64_t running, waiting, cache_bytes;
  };
  Load load();

 private:
  struct Submission {
    GenerationRequest request;
    std::shared_ptr<TokenQueue> queue;
  };
  void work();
  void take_submissions();
  void drop_cancelled();

  Engine engine_;
  int64_t max_waiting_, max_batch_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Submission> submissions_;
  Load load_{};
  bool stopping_ = false;
  std::map<int64_t, std::shared_ptr<TokenQueue>> answers_;  // by request number; the thread's own
  std::thread thread_;
};

}  // namespace uniattn
