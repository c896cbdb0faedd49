// Who this process is among the ranks, as torchrun or SLURM says in the environment.
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
  std::string attempt = "0";  // names the start: a restarted group must not read what the last one left

  // From torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; else, in a step of SLURM, from its
  // SLURM_* (rank 0's machine is then the first of the step, the port follows from the job's number, unless MASTER_ADDR
  // and MASTER_PORT say otherwise); else one rank. Throws UsageError naming the variable that is missing or out of
  // range.
  static Launch from_environment();
};

}  // namespace uniattn
