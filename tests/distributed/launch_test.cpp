#include "lighthouse/distributed/launch.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using distributed::Launch;
using Variables = std::map<std::string, std::string>;

Launch read(const Variables& variables) {
  return distributed::read_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

bool refuses(const Variables& variables, std::initializer_list<std::string> parts) {
  return static_cast<bool>(throws<std::invalid_argument>([&] { read(variables); }, parts));
}

TEST(Launch, IsOfOneProcessWithoutALauncher) {
  const Variables none, empty{{"RANK", ""}, {"WORLD_SIZE", ""}},
      of_one{{"RANK", "0"}, {"WORLD_SIZE", "1"}}, size_alone{{"WORLD_SIZE", "1"}},
      // A batch script of Slurm, outside of any srun.
      batch{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}};
  for (const Variables& variables : {none, empty, of_one, size_alone, batch}) {
    const Launch launch = read(variables);
    EXPECT_EQ(launch.launcher, "");
    EXPECT_EQ(launch.rank, 0);
    EXPECT_EQ(launch.size, 1);
  }
}

TEST(Launch, ReadsWhatEachLauncherSets) {
  const Variables address{{"MASTER_ADDR", "node0"}};
  const auto with_address = [&](Variables variables) {
    variables.insert(address.begin(), address.end());
    return read(variables);
  };
  const Launch torchrun = with_address({{"RANK", "5"},
                                        {"WORLD_SIZE", "8"},
                                        {"LOCAL_RANK", "1"},
                                        {"MASTER_PORT", "1234"},
                                        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                        {"OMPI_COMM_WORLD_RANK", "0"},
                                        {"OMPI_COMM_WORLD_SIZE", "2"}});
  EXPECT_EQ(torchrun.launcher, "torchrun");
  EXPECT_EQ(torchrun.rank, 5);
  EXPECT_EQ(torchrun.size, 8);
  EXPECT_EQ(torchrun.local_rank, 1);
  EXPECT_EQ(torchrun.address, "node0");
  EXPECT_EQ(torchrun.port, 1234);
  EXPECT_TRUE(torchrun.is_served);

  const Launch by_hand = with_address({{"RANK", "1"}, {"WORLD_SIZE", "2"}});
  EXPECT_FALSE(by_hand.local_rank.has_value());
  EXPECT_FALSE(by_hand.is_served);
  EXPECT_EQ(by_hand.port, 29500);

  const Launch open_mpi = with_address({{"OMPI_COMM_WORLD_RANK", "3"},
                                        {"OMPI_COMM_WORLD_SIZE", "4"},
                                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}});
  EXPECT_EQ(open_mpi.launcher, "mpirun");
  EXPECT_EQ(open_mpi.rank, 3);
  EXPECT_EQ(open_mpi.size, 4);
  EXPECT_EQ(open_mpi.local_rank, 1);

  // Inside a job of Slurm, by whose srun it started its helpers.
  const Launch mpich = with_address({{"PMI_RANK", "3"},
                                     {"PMI_SIZE", "4"},
                                     {"MPI_LOCALRANKID", "2"},
                                     {"SLURM_PROCID", "0"},
                                     {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(mpich.launcher, "mpirun");
  EXPECT_EQ(mpich.rank, 3);
  EXPECT_EQ(mpich.local_rank, 2);

  // srun --mpi=pmi2 sets these as MPICH does, but for the local rank.
  EXPECT_EQ(with_address({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"SLURM_LOCALID", "1"}}).local_rank,
            1);
  EXPECT_EQ(with_address({{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"LOCAL_RANK", "0"}}).local_rank,
            0);

  const Launch srun =
      with_address({{"SLURM_PROCID", "6"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_LOCALID", "2"}});
  EXPECT_EQ(srun.launcher, "srun");
  EXPECT_EQ(srun.rank, 6);
  EXPECT_EQ(srun.size, 8);
  EXPECT_EQ(srun.local_rank, 2);
}

TEST(Launch, NamesTheVariableThatIsWrongAndTheRemedy) {
  EXPECT_TRUE(refuses({{"RANK", "1"}, {"WORLD_SIZE", "2"}},
                      {"MASTER_ADDR is not set", "2 ranks", "export MASTER_ADDR=HOST"}));
  EXPECT_TRUE(refuses({{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}},
                      {"MASTER_ADDR is not set", "scontrol show hostnames"}));
  EXPECT_TRUE(refuses({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}},
                      {"MASTER_ADDR is not set", "mpirun -x MASTER_ADDR=HOST"}));
  EXPECT_TRUE(refuses({{"RANK", "2"}, {"WORLD_SIZE", "2"}}, {"RANK is '2'", "from 0 to 1"}));
  EXPECT_TRUE(refuses({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, {"RANK is '-1'", "from 0 to 1"}));
  EXPECT_TRUE(refuses({{"RANK", "1x"}, {"WORLD_SIZE", "2"}}, {"RANK is '1x'", "whole number"}));
  EXPECT_TRUE(refuses({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, {"WORLD_SIZE is '0'"}));
  EXPECT_TRUE(refuses({{"RANK", "1"}}, {"RANK is '1'", "WORLD_SIZE is not set", "torchrun"}));
  EXPECT_TRUE(refuses({{"WORLD_SIZE", "2"}}, {"WORLD_SIZE is 2", "RANK is not set"}));
  EXPECT_TRUE(refuses({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "2"}},
                      {"LOCAL_RANK is '2'", "from 0 to 1"}));
  EXPECT_TRUE(refuses(
      {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "node0"}, {"MASTER_PORT", "70000"}},
      {"MASTER_PORT is '70000'", "from 1 to 65535"}));
}

TEST(Launch, SaysWhetherItsCommandHasRunBefore) {
  const auto is_restart = [](const Variables& variables) {
    return distributed::is_restart([&](const char* name) -> const char* {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_FALSE(is_restart({}));
  EXPECT_FALSE(is_restart({{"TORCHELASTIC_RESTART_COUNT", "0"}}));
  EXPECT_TRUE(is_restart({{"TORCHELASTIC_RESTART_COUNT", "2"}}));
  EXPECT_TRUE(is_restart({{"TORCHELASTIC_RESTART_COUNT", "0"}, {"SLURM_RESTART_COUNT", "1"}}));
}

}  // namespace
}  // namespace lighthouse::testing
