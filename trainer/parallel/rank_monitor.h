// How ranks learn that one of them has failed, and which of them says so.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/rendezvous.h"

namespace uniattn {

// Ranks leave word in the store: what they failed of, what they were waiting for when another one was lost, and, once
// there is trouble, that they are alive. So one rank can print who has failed and why, and a rank that is busy
// elsewhere ends as well.
class RankMonitor {
 public:
  // Watches from a thread of its own until destroyed.
  RankMonitor(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, std::chrono::milliseconds timeout);
  ~RankMonitor();
  RankMonitor(const RankMonitor&) = delete;
  RankMonitor& operator=(const RankMonitor&) = delete;

  // Makes all other ranks end, though the reason may not be known yet.
  void announce_trouble();

  // Leaves word of `error`, by which this rank ends, and returns what it should print: the failed rank and the cause
  // for the first to ask, for all others only that they end too. Where another rank has failed, that one goes first.
  std::string last_words(const std::exception& error);

 private:
  std::string words_of_failure(const std::string& message);
  std::string words_of_loss(const std::string& message);
  void watch();
  bool is_set(const std::string& kind, int64_t rank);
  void leave_word(const std::string& kind, const std::string& text);
  bool is_first_to_speak();
  std::string own_name() const;

  Launch launch_;
  c10::intrusive_ptr<c10d::Store> store_, watched_;  // of the main thread, of the watching one
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace uniattn
