// Who this process is among the ranks, as torchrun says in the environment.
#pragma once
#include <cstdint>
#include <string>

namespace uniattn {

struct Launch {
  int64_t rank = 0, world_size = 1;
  int64_t local_rank = 0;      // among the ranks of this machine
  std::string master_address;  // of the store where ranks find each other
  int64_t master_port = 0;
  bool agent_store = false;   // torchrun itself runs that store; otherwise rank 0 does
  std::string attempt = "0";  // torchrun's count of restarts: a restarted group must not read what the last one left

  // From RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; one rank when WORLD_SIZE is absent or 1.
  // Throws UsageError naming the variable that is missing or out of range.
  static Launch from_environment();
};

}  // namespace uniattn
