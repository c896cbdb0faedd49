// Where the ranks of a run find each other: a key-value store that all of them can reach.
#pragma once
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <exception>
#include <string>

#include "parallel/launch.h"

namespace uniattn {

// Opens the store that `launch` describes and returns once every rank has reached it. Throws Error naming the store, or
// the ranks that are missing after `timeout`.
c10::intrusive_ptr<c10d::Store> meet(const Launch& launch, std::chrono::milliseconds timeout);

// One more connection to the same store, for another thread: a connection serves one call at a time.
c10::intrusive_ptr<c10d::Store> connect_again(const Launch& launch, std::chrono::milliseconds timeout);

// What an exception says, without the backtrace that PyTorch appends; and its first line alone.
std::string message_of(const std::exception& error);
std::string cause_of(const std::exception& error);

}  // namespace uniattn
