#include "lighthouse/distributed/launch.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>

#include "lighthouse/core/check.h"

namespace lighthouse::distributed {
namespace {

/// The variables in which a launcher says where a process stands.
struct Variables {
  const char* launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* address_remedy;
};

constexpr int64_t kDefaultPort = 29500;  // PyTorch's

// torchrun first: whatever started it has left its own variables. mpirun before srun: it starts its
// own helpers by srun, whose variables its processes then inherit.
constexpr Variables kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "export MASTER_ADDR=HOST"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "mpirun -x MASTER_ADDR=HOST ..."},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "mpirun -genv MASTER_ADDR HOST ..."},
    // Not SLURM_NTASKS, which a batch script has too, outside of any srun.
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
     "export MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)"},
};

std::optional<std::string> find(const Environment& environment, const char* name) {
  const char* value = environment(name);
  if (value == nullptr || *value == '\0') return {};
  return value;
}

int64_t parse(const char* name, const std::string& text, int64_t least, int64_t most) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  check_argument(error == std::errc() && rest == end && value >= least && value <= most, name,
                 " is '", text, "'; it must be a whole number from ", least, " to ", most);
  return value;
}

}  // namespace

Launch read_launch(const Environment& environment) {
  constexpr int64_t kMostRanks = 1 << 20;
  for (const Variables& of : kLaunchers) {
    const auto rank = find(environment, of.rank), size = find(environment, of.size);
    if (!size && (!rank || &of != kLaunchers)) continue;
    constexpr const char* kRemedy =
        " is not set; a launcher sets both: start with torchrun, srun or mpirun";
    check_argument(size.has_value(), of.rank, " is '", rank.value_or(""), "', but ", of.size,
                   kRemedy);
    Launch launch;
    launch.size = parse(of.size, *size, 1, kMostRanks);
    if (launch.size == 1) return {};
    check_argument(rank.has_value(), of.size, " is ", launch.size, ", but ", of.rank, kRemedy);
    launch.rank = parse(of.rank, *rank, 0, launch.size - 1);
    launch.launcher = of.launcher;
    // The launcher's own, else the user's, else srun's: its PMI-2 plugin sets the first two as
    // MPICH does, and leaves out the third.
    for (const char* name : {of.local_rank, "LOCAL_RANK", "SLURM_LOCALID"}) {
      const auto local = find(environment, name);
      if (!local) continue;
      launch.local_rank = parse(name, *local, 0, launch.size - 1);
      break;
    }
    const auto address = find(environment, "MASTER_ADDR");
    check_argument(address.has_value(), "MASTER_ADDR is not set, where the ", launch.size,
                   " ranks find rank 0; set it to the host of rank 0: ", of.address_remedy);
    launch.address = *address;
    const auto port = find(environment, "MASTER_PORT");
    launch.port = port ? parse("MASTER_PORT", *port, 1, 65535) : kDefaultPort;
    launch.is_served = find(environment, "TORCHELASTIC_USE_AGENT_STORE") == "True";
    return launch;
  }
  return {};
}

bool is_restart(const Environment& environment) {
  constexpr const char* kCounts[]{"TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"};
  return std::ranges::any_of(kCounts, [&](const char* name) {
    const auto count = find(environment, name);
    return count && parse(name, *count, 0, std::numeric_limits<int64_t>::max()) > 0;
  });
}

}  // namespace lighthouse::distributed
