#include "lighthouse/distributed/connect.h"

#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <thread>

#include "lighthouse/core/check.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using distributed::connect;
using distributed::Launch;
using distributed::PeerError;
using distributed::World;
using std::chrono_literals::operator""s;
using std::chrono_literals::operator""ms;

Launch launch_of(int64_t rank, int64_t size, int64_t port) {
  Launch launch;
  launch.launcher = "torchrun";
  launch.rank = rank;
  launch.size = size;
  launch.address = "127.0.0.1";
  launch.port = port;
  return launch;
}

/// A store as torchrun serves it, at a port that is free.
c10::intrusive_ptr<c10d::TCPStore> serve() {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  options.timeout = 30s;
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

TEST(Connect, OneProcessNeedsNoOther) {
  EXPECT_EQ(connect(Launch{}, {}).size(), 1);
  EXPECT_EQ(distributed::device_of(Launch{}, at::kCUDA), at::Device(at::kCUDA));
}

/// What a rank of the test below does; it is started as a process of its own.
TEST(Connect, DISABLED_RankOfTwoProcesses) {
  const Launch launch = distributed::read_launch(std::getenv);
  World world = connect(launch, {.timeout = 30s});
  EXPECT_EQ(world.size(), 2);
  EXPECT_EQ(world.rank(), launch.rank);
  EXPECT_EQ(world.local_rank(), launch.rank);
  EXPECT_EQ(world.sum(world.rank() + 1), 3);
  const distributed::Mesh mesh = distributed::Mesh::of(world, 2);
  EXPECT_EQ(World::named(mesh.context.group()).sum(int64_t{1}), 2);
  world.close();
}

TEST(Connect, TwoProcessesMeet) {
  const auto store = serve();
  std::vector<pid_t> ranks;
  for (const char* rank : {"0", "1"}) {
    std::vector<std::string> variables{
        message("RANK=", rank),  message("LOCAL_RANK=", rank),
        "WORLD_SIZE=2",          "TORCHELASTIC_USE_AGENT_STORE=True",
        "MASTER_ADDR=127.0.0.1", message("MASTER_PORT=", store->getPort()),
        "OMP_NUM_THREADS=1"};
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    std::vector<std::string> words{"rank", "--gtest_filter=Connect.DISABLED_RankOfTwoProcesses",
                                   "--gtest_also_run_disabled_tests", "--gtest_brief=1"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t& process = ranks.emplace_back();
    ASSERT_EQ(posix_spawn(&process, "/proc/self/exe", nullptr, nullptr, arguments.data(),
                          environment.data()),
              0);
  }
  for (const pid_t rank : ranks) {
    int status = 0;
    ASSERT_EQ(waitpid(rank, &status, 0), rank);
    EXPECT_EQ(status, 0);
  }
}

TEST(Connect, RefusesAPortInUse) {
  const auto store = serve();
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { connect(launch_of(0, 2, store->getPort()), {.timeout = 1s}); },
      {message("MASTER_PORT is ", store->getPort()), "in use", "torchrun --master-port=PORT"}));
}

TEST(Connect, RefusesARankGivenTwiceAndSizesThatDiffer) {
  const auto store = serve();
  store->add("ranks/1", 1);
  static_cast<c10d::Store&>(*store).set("size", std::string("4"));
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { connect(launch_of(1, 2, store->getPort()), {.timeout = 1s}); },
      {"two processes say that they are rank 1 of 2"}));
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { connect(launch_of(2, 3, store->getPort()), {.timeout = 1s}); },
      {"rank 2 is of 3 ranks, and rank 0 of 4"}));
}

TEST(Connect, SaysWhoDidNotCome) {
  int64_t free_port = 0;
  {
    const auto store = serve();
    free_port = store->getPort();
    EXPECT_TRUE(
        throws<PeerError>([&] { connect(launch_of(1, 2, store->getPort()), {.timeout = 100ms}); },
                          {"rank 1 of 2 waited 0.1 s for ranks that did not come: 0"}));
    Launch first = launch_of(0, 2, store->getPort());
    first.is_served = true;
    EXPECT_TRUE(throws<PeerError>([&] { connect(first, {.timeout = 100ms}); },
                                  {"rank 0 of 2 waited 0.1 s for ranks that did not come: 1"}));
  }
  EXPECT_TRUE(throws<PeerError>(
      [&] { connect(launch_of(1, 2, free_port), {.timeout = 100ms}); },
      {"rank 1 of 2 cannot reach rank 0 at 127.0.0.1:", "check MASTER_ADDR and MASTER_PORT"}));
}

TEST(Connect, ChoosesTheGpuOfTheLocalRank) {
  Launch launch = launch_of(1, 2, 1);
  EXPECT_EQ(distributed::device_of(launch, at::kCPU), at::Device(at::kCPU));
  EXPECT_EQ(distributed::device_of(launch, {at::kCUDA, 3}), at::Device(at::kCUDA, 3));
  EXPECT_TRUE(throws<std::invalid_argument>([&] { distributed::device_of(launch, at::kCUDA); },
                                            {"LOCAL_RANK is not set", "rank 1"}));
}

TEST(Connect, RefusesMoreRanksThanGpus) {
  distributed::check_gpus({"node0\na", "node0\nb", "node1\na"});
  EXPECT_TRUE(throws<std::invalid_argument>(
      [] {
        distributed::check_gpus({"node0\na", "node1\na", "node1\nb", "node1\nb"});
      },
      {"ranks 2 and 3 have the same GPU of node1", "torchrun --nproc-per-node=GPUS"}));
}

/// A rank that fails before it connects, as by a recipe that it cannot read, need not be waited
/// for.
TEST(Connect, EndsWhereARankFailsMeanwhile) {
  const auto store = serve();
  Launch first = launch_of(0, 2, store->getPort()), second = launch_of(1, 2, store->getPort());
  first.is_served = second.is_served = true;
  std::string said;
  std::thread failing([&] {
    distributed::Rendezvous(second).end(std::make_exception_ptr(std::runtime_error("no such key")),
                                        [&](const std::string& word) { said = word; });
  });
  distributed::Rendezvous rendezvous(first);
  EXPECT_TRUE(
      throws<PeerError>([&] { rendezvous.connect({.timeout = 30s}); }, {"another rank failed"}));
  failing.join();
  EXPECT_EQ(said, "rank 1 of 2 on " + distributed::host_name() + ": no such key");
}

}  // namespace
}  // namespace lighthouse::testing
