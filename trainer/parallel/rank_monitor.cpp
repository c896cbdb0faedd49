#include "parallel/rank_monitor.h"

#include <fmt/ranges.h>

#include <cstdlib>

#include "parallel/process_group.h"
#include "support/log.h"

namespace uniattn {
namespace {

using namespace std::chrono_literals;

constexpr auto kLookEvery = 500ms;  // for trouble of other ranks
constexpr auto kOthersSpeak = 3s;   // for the failed rank to leave word, and for all to say that they are alive
constexpr auto kEndByItself = 10s;  // after trouble, before a rank is ended whatever it does
constexpr auto kStoreLingers = 5s;  // for other ranks to read what they need from rank 0's store

// Keys: what a rank failed of; what it saw of another's failure; that it lives; that it has said all.
constexpr const char *kFailed = "failed", *kLost = "lost", *kAlive = "alive", *kDone = "done";
constexpr const char *kTrouble = "trouble", *kSpoken = "spoken";

std::string word_key(const std::string& kind, int64_t rank) {
  return fmt::format("{}/{}", kind, rank);
}

}  // namespace

RankMonitor::RankMonitor(const Launch& launch, c10::intrusive_ptr<c10d::Store> store, std::chrono::milliseconds timeout)
    : launch_(launch), store_(std::move(store)), watched_(connect_again(launch, timeout)) {
  thread_ = std::thread([this] { watch(); });
}

RankMonitor::~RankMonitor() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void RankMonitor::watch() {
  std::unique_lock lock(mutex_);
  const auto ends_within = [&](auto time) { return changed_.wait_for(lock, time, [&] { return ended_; }); };
  while (!ends_within(kLookEvery)) {
    try {
      if (!watched_->check({kTrouble})) continue;
      watched_->set(word_key(kAlive, launch_.rank), std::vector<uint8_t>{1});
    } catch (const std::exception&) {
      // The store is gone, and with it the rank or the agent that ran it.
    }
    if (ends_within(kEndByItself)) return;
    log::error(fmt::format("{} is ended: another rank has failed, and this one was busy for {} s since", own_name(),
                           std::chrono::seconds(kEndByItself).count()));
    std::_Exit(1);
  }
}

void RankMonitor::announce_trouble() {
  try {
    store_->set(kTrouble, std::vector<uint8_t>{1});
  } catch (const std::exception&) {
    // Without the store all ranks are ending already.
  }
}

std::string RankMonitor::own_name() const {
  return fmt::format("rank {} of {}", launch_.rank, launch_.world_size);
}

bool RankMonitor::is_set(const std::string& kind, int64_t rank) {
  return store_->check({word_key(kind, rank)});
}

void RankMonitor::leave_word(const std::string& kind, const std::string& text) {
  store_->set(word_key(kind, launch_.rank), std::vector<uint8_t>(text.begin(), text.end()));
}

bool RankMonitor::is_first_to_speak() {
  return store_->add(kSpoken, 1) == 1;
}

std::string RankMonitor::last_words(const std::exception& error) {
  const std::string message = message_of(error);
  std::string words;
  try {
    announce_trouble();
    words = dynamic_cast<const CommunicationError*>(&error) ? words_of_loss(message) : words_of_failure(message);
    leave_word(kDone, "");
    if (launch_.rank == 0 && !launch_.agent_store) {
      std::vector<std::string> keys;
      for (int64_t rank = 0; rank < launch_.world_size; ++rank) keys.push_back(word_key(kDone, rank));
      store_->wait(keys, kStoreLingers);
    }
  } catch (const std::exception&) {
    if (!words.empty()) return words;
    // Ranks cannot agree on who speaks any more: the next one does.
    if (launch_.rank == 1)
      return fmt::format("rank 0, which ran the store at {}:{}, has died; {}: {}", launch_.master_address,
                         launch_.master_port, own_name(), message);
    return own_name() + " ends: rank 0's store is gone";
  }
  return words;
}

std::string RankMonitor::words_of_failure(const std::string& message) {
  leave_word(kFailed, message);
  return is_first_to_speak() ? own_name() + ": " + message : own_name() + " ends with the others";
}

std::string RankMonitor::words_of_loss(const std::string& message) {
  leave_word(kLost, message);
  const auto deadline = std::chrono::steady_clock::now() + kOthersSpeak;
  while (std::chrono::steady_clock::now() < deadline) {
    for (int64_t rank = 0; rank < launch_.world_size; ++rank)
      if (is_set(kFailed, rank)) return fmt::format("{} ends: rank {} has failed and says why", own_name(), rank);
    std::this_thread::sleep_for(50ms);
  }
  std::vector<int64_t> dead, elsewhere;
  for (int64_t rank = 0; rank < launch_.world_size; ++rank) {
    if (is_set(kLost, rank)) continue;
    (is_set(kAlive, rank) ? elsewhere : dead).push_back(rank);
  }
  if (!is_first_to_speak()) return own_name() + " ends with the others";
  if (!dead.empty())
    return fmt::format("rank {} has died or is stopped; {} noticed it: {}", fmt::join(dead, ", "), own_name(), message);
  if (!elsewhere.empty())
    return fmt::format("rank {} lives but did not come in time; {} noticed it: {}", fmt::join(elsewhere, ", "),
                       own_name(), message);
  return own_name() + ": " + message;
}

}  // namespace uniattn
