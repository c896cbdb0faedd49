#include "parallel/launch.h"

#include <charconv>
#include <cstdlib>

#include "support/error.h"

namespace uniattn {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int64_t integer(const char* name, int64_t low, int64_t high) {
  const std::string text = variable(name);
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    fail_usage("environment variable {} is '{}', expected an integer from {} to {}; start the ranks with torchrun",
               name, text, low, high);
  }
  return value;
}

}  // namespace

Launch Launch::from_environment() {
  Launch launch;
  if (variable("WORLD_SIZE").empty()) return launch;
  launch.world_size = integer("WORLD_SIZE", 1, INT32_MAX);
  if (launch.world_size == 1) return launch;
  launch.rank = integer("RANK", 0, launch.world_size - 1);
  launch.local_rank = integer("LOCAL_RANK", 0, launch.rank);
  launch.master_address = variable("MASTER_ADDR");
  if (launch.master_address.empty()) {
    fail_usage("environment variable MASTER_ADDR is not set and WORLD_SIZE is {}; start the ranks with torchrun",
               launch.world_size);
  }
  launch.master_port = integer("MASTER_PORT", 1, UINT16_MAX);
  launch.agent_store = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (launch.agent_store) launch.attempt = variable("TORCHELASTIC_RESTART_COUNT");
  return launch;
}

}  // namespace uniattn
