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

// `starter`: what should have set it.
int64_t integer(const char* name, int64_t low, int64_t high, const char* starter) {
  const std::string text = variable(name);
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    fail_usage("environment variable {} is '{}', expected an integer from {} to {}; start the ranks with {}", name,
               text, low, high, starter);
  }
  return value;
}

Launch from_torchrun() {
  constexpr const char* kStarter = "torchrun";
  Launch launch;
  launch.world_size = integer("WORLD_SIZE", 1, INT32_MAX, kStarter);
  if (launch.world_size == 1) return launch;
  launch.rank = integer("RANK", 0, launch.world_size - 1, kStarter);
  launch.local_rank = integer("LOCAL_RANK", 0, launch.rank, kStarter);
  launch.master_address = variable("MASTER_ADDR");
  if (launch.master_address.empty()) {
    fail_usage("environment variable MASTER_ADDR is not set and WORLD_SIZE is {}; start the ranks with torchrun",
               launch.world_size);
  }
  launch.master_port = integer("MASTER_PORT", 1, UINT16_MAX, kStarter);
  launch.agent_store = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (launch.agent_store) launch.attempt = variable("TORCHELASTIC_RESTART_COUNT");
  return launch;
}

// "gpu[003-006,009],login1" -> "gpu003"
std::string first_host(const std::string& list) {
  const size_t end = list.find_first_of("[,");
  const std::string name = list.substr(0, end);
  if (end == std::string::npos || list[end] == ',') return name;
  return name + list.substr(end + 1, list.find_first_of("-,]", end) - end - 1);
}

// A step that `srun` has started. (The batch script of a job has no step.)
Launch from_slurm() {
  constexpr const char* kStarter = "srun";
  constexpr int64_t kFirstPort = 20000, kPorts = 10000;
  Launch launch;
  launch.world_size = integer("SLURM_STEP_NUM_TASKS", 1, INT32_MAX, kStarter);
  if (launch.world_size == 1) return launch;
  launch.rank = integer("SLURM_PROCID", 0, launch.world_size - 1, kStarter);
  launch.local_rank = integer("SLURM_LOCALID", 0, launch.rank, kStarter);
  launch.attempt = variable("SLURM_STEP_ID");
  launch.master_address = variable("MASTER_ADDR");
  if (launch.master_address.empty()) launch.master_address = first_host(variable("SLURM_STEP_NODELIST"));
  if (launch.master_address.empty())
    fail_usage("environment variable SLURM_STEP_NODELIST is not set; start the ranks with srun, or set MASTER_ADDR");
  const int64_t job = integer("SLURM_JOB_ID", 0, INT64_MAX, kStarter);
  launch.master_port =
      variable("MASTER_PORT").empty() ? kFirstPort + job % kPorts : integer("MASTER_PORT", 1, UINT16_MAX, kStarter);
  return launch;
}

}  // namespace

Launch Launch::from_environment() {
  if (!variable("WORLD_SIZE").empty()) return from_torchrun();
  if (!variable("SLURM_STEP_NUM_TASKS").empty()) return from_slurm();
  return {};
}

}  // namespace uniattn
