#include "lighthouse/distributed/world.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <new>

#include "lighthouse/distributed/group.h"
#include "tests/distributed/ranks.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;
using distributed::Mesh;
using distributed::PeerError;
using distributed::World;

TEST(WorldOfOne, ReturnsWhatItIsGiven) {
  World world;
  EXPECT_EQ(world.rank(), 0);
  EXPECT_EQ(world.size(), 1);
  EXPECT_EQ(world.local_rank(), 0);
  EXPECT_EQ(world.group(), "");
  EXPECT_TRUE(world.is_first());

  const Tensor values = at::arange(6, at::kFloat), before = values.clone();
  world.sum(values);
  world.max(values);
  world.broadcast(values);
  EXPECT_TRUE(values.equal(before));
  EXPECT_EQ(world.sum(2.5), 2.5);
  EXPECT_EQ(world.max(int64_t{1} << 60), int64_t{1} << 60);
  EXPECT_FALSE(world.any(false));
  EXPECT_TRUE(world.any(true));
  ASSERT_EQ(world.gather(values).size(), 1);
  EXPECT_TRUE(world.gather(values)[0].equal(before));
  EXPECT_EQ(world.gather("here"), std::vector<std::string>{"here"});
  EXPECT_EQ(world.broadcast("here"), "here");

  const Tensor part = at::zeros({6});
  world.sum_scatter(values, part);
  EXPECT_TRUE(part.equal(before));
  world.gather_parts(part, part);
  EXPECT_TRUE(part.equal(before));
  world.barrier();
  const Mesh mesh = Mesh::of(world, 1);
  EXPECT_EQ(mesh.data.size() * mesh.context.size(), 1);
  world.close();
}

TEST(World, SumsAndTakesMaximaOverItsRanks) {
  run_ranks(3, [](const World& world) {
    const auto r = static_cast<double>(world.rank());
    EXPECT_EQ(world.size(), 3);
    EXPECT_EQ(world.sum(r + 0.5), 4.5);
    EXPECT_EQ(world.sum(world.rank()), 3);
    EXPECT_EQ(world.max(-r), 0);
    EXPECT_EQ(world.max(world.rank()), 2);
    EXPECT_TRUE(world.any(world.rank() == 1));
    EXPECT_FALSE(world.any(false));

    const Tensor columns = at::full({2, 3}, r).t();  // not contiguous: in place all the same
    world.sum(columns);
    EXPECT_TRUE(columns.eq(3).all().item<bool>());
    const Tensor leaf = at::full({4}, r).requires_grad_();
    world.max(leaf);
    EXPECT_TRUE(leaf.eq(2).all().item<bool>());
  });
}

TEST(World, GathersAndBroadcastsTensorsAndTexts) {
  run_ranks(3, [](const World& world) {
    const std::vector<Tensor> all = world.gather(at::full({2, 2}, world.rank()));
    const std::vector<std::string> texts = world.gather(std::string(world.rank(), 'x'));
    ASSERT_EQ(all.size(), 3);
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(all[i].equal(at::full({2, 2}, i)));
      EXPECT_EQ(texts[i], std::string(i, 'x'));
    }
    EXPECT_EQ(world.broadcast(world.rank() == 2 ? "two" : "another", 2), "two");
    EXPECT_EQ(world.broadcast(""), "");
    const Tensor columns = at::full({2, 3}, world.rank()).t();
    world.broadcast(columns, 1);
    EXPECT_TRUE(columns.eq(1).all().item<bool>());
  });
}

TEST(World, ScattersASumAndGathersItsParts) {
  run_ranks(3, [](const World& world) {
    const Tensor whole = at::arange(12, at::kFloat).mul(world.rank() + 1);
    const Tensor sum = at::arange(12, at::kFloat).mul(6);
    const Tensor part = whole.narrow(0, 4 * world.rank(), 4);  // a view of what it is gathered into
    world.sum_scatter(whole.clone(), part);
    EXPECT_TRUE(part.equal(sum.narrow(0, 4 * world.rank(), 4)));
    world.gather_parts(part, whole);
    EXPECT_TRUE(whole.equal(sum));
  });
}

TEST(World, IsFoundByTheNameOfItsGroup) {
  run_ranks(4, [](const World& world) {
    const World found = World::named(world.group());
    EXPECT_EQ(found.rank(), world.rank());
    EXPECT_EQ(found.sum(int64_t{1}), 4);
    EXPECT_TRUE(throws<std::invalid_argument>([&] { Mesh::of(found, 2); },
                                              {"'" + world.group() + "'", "connect"}));
  });
}

TEST(World, EndsInOrder) {
  run_ranks(3, [](const World& world) {
    World leaving = world;
    leaving.close();
    EXPECT_EQ(leaving.size(), 1);
  });
}

TEST(World, NamesTheRankWhosePeerLeft) {
  run_ranks(2, [](const World& world) {
    if (world.rank() == 1) return;
    EXPECT_TRUE(throws<PeerError>([&] { world.barrier(); },
                                  {"rank 0 of 2", "one of them ended, or did not answer in time"}));
  });
}

/// What is this rank's own fault is not called another's.
TEST(World, TellsItsOwnErrorsFromThoseOfItsPeers) {
  run_ranks(2, [](const World& world) {
    const auto& processes = *c10d::resolve_process_group(world.group());
    const auto call = [&](const auto& error) {
      distributed::with_peers(processes, "work", [&] { throw error; });
    };
    EXPECT_TRUE(throws<std::bad_alloc>([&] { call(std::bad_alloc()); }, {}));
    EXPECT_TRUE(throws<c10::ValueError>(
        [&] {
          distributed::with_peers(processes, "work", [] { TORCH_CHECK_VALUE(false, "odd"); });
        },
        {"odd"}));
    EXPECT_TRUE(throws<PeerError>(
        [&] {
          distributed::with_peers(processes, "work",
                                  [] { C10_THROW_ERROR(DistBackendError, "NCCL error"); });
        },
        {"could not work with the others", "NCCL error"}));
    EXPECT_TRUE(throws<PeerError>([&] { call(std::runtime_error("closed")); }, {"(closed)"}));
  });
}

TEST(World, WaitsForADoneThatIsLongerThanAnExchange) {
  run_ranks(3, [](const World& world) {
    int64_t asked = 0;
    world.wait_until([&] { return ++asked > world.rank(); });
    EXPECT_EQ(asked, 3);
  });
  int64_t asked = 0;
  World().wait_until([&] { return ++asked == 2; });
  EXPECT_EQ(asked, 2);
}

/// Consecutive ranks share a sequence.
TEST(Mesh, IsDataTimesContext) {
  run_ranks(4, [](const World& world) {
    const Mesh mesh = Mesh::of(world, 2);
    EXPECT_EQ(mesh.data.rank(), world.rank() / 2);
    EXPECT_EQ(mesh.context.rank(), world.rank() % 2);
    EXPECT_EQ(mesh.data.sum(world.rank()), world.rank() % 2 == 0 ? 0 + 2 : 1 + 3);
    EXPECT_EQ(mesh.context.sum(world.rank()), world.rank() < 2 ? 0 + 1 : 2 + 3);
    EXPECT_EQ(World::named(mesh.context.group()).sum(world.rank()), world.rank() < 2 ? 1 : 5);
    EXPECT_NE(mesh.data.group(), mesh.context.group());

    EXPECT_EQ(Mesh::of(world, 1).context.size(), 1);
    EXPECT_EQ(Mesh::of(world, 1).data.size(), 4);
    EXPECT_TRUE(throws<std::invalid_argument>([&] { Mesh::of(world, 3); },
                                              {"context is 3 ranks", "4 ranks"}));
  });
}

}  // namespace
}  // namespace lighthouse::testing
