#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace lighthouse::distributed {

/// What a launcher says to a process about its place among the others.
struct Launch {
  std::string launcher = {};  ///< "torchrun", "mpirun" or "srun"; empty without one
  int64_t rank = 0;
  int64_t size = 1;
  std::optional<int64_t> local_rank = {};  ///< among the processes of this host
  std::string address = {};                ///< where rank 0 is
  int64_t port = 0;
  bool is_served = false;  ///< the launcher serves the store there, and not rank 0
};

/// The value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

/// Reads what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), else what the
/// mpirun of Open MPI or of MPICH, or srun, sets; these leave MASTER_ADDR to the user. Without any
/// of them, or for one process, the launch is of one process.
/// @throws std::invalid_argument, naming the variable and the remedy
Launch read_launch(const Environment& environment);

/// Whether the launcher has started the same command before, and it failed or lost its machine:
/// `torchrun --max-restarts` (TORCHELASTIC_RESTART_COUNT), or a job that Slurm has put back into
/// its queue (SLURM_RESTART_COUNT).
bool is_restart(const Environment& environment);

}  // namespace lighthouse::distributed
