#include "lighthouse/train/agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lighthouse/distributed/connect.h"
#include "lighthouse/train/train.h"
#include "tests/distributed/ranks.h"
#include "tests/support/throws.h"

namespace lighthouse::train {
namespace {

using testing::throws;

run::Recipe recipe(const std::vector<std::string>& stages = {"s"}) {
  run::Recipe recipe;
  recipe.data.path = {"here"};
  for (const std::string& name : stages) recipe.stages.emplace_back().name = name;
  return recipe;
}

/// Every rank must say the same of what rank `odd` has otherwise.
void expect_refused(int64_t ranks, int64_t odd, const Facts& facts, const Facts& others,
                    const std::string& what) {
  testing::run_ranks(ranks, [&](const distributed::World& world) {
    EXPECT_TRUE(throws<std::invalid_argument>(
        [&] { check_agreement(world, world.rank() == odd ? facts : others); }, {what}));
  });
}

TEST(Agreement, NamesTheRankThatDiffersWhatAndBothValues) {
  const std::string host = " (" + distributed::host_name() + ")";
  run::Recipe other = recipe();
  other.optimizer.lr = 0.5;
  const Facts facts = facts_of(recipe(), {}), differ = facts_of(other, {});
  expect_refused(3, 2, differ, facts,
                 "optimizer.lr is 0.5 on rank 2" + host + ", and 0.002 on rank 0" + host +
                     "; all ranks must have the same");
  // Most are right, and rank 0 need not be one of them.
  expect_refused(3, 0, differ, facts,
                 "optimizer.lr is 0.5 on rank 0" + host + ", and 0.002 on rank 1" + host);
  expect_refused(2, 0, differ, facts,
                 "optimizer.lr is 0.002 on rank 1" + host + ", and 0.5 on rank 0" + host);
}

TEST(Agreement, IsAboutAllThatRanksMustHaveAlike) {
  const Facts facts = facts_of(recipe(), {});
  const Facts longer = facts_of(recipe({"s", "t"}), {});
  expect_refused(2, 1, longer, facts, "stage.1.name is \"t\" on rank 1");
  expect_refused(2, 1, facts, longer, "stage.1.name is missing on rank 1");
  expect_refused(2, 1, facts_of(recipe(), {.resume = true}), facts, "--resume is given on rank 1");
  for (const char* name : {"the version of the program", "the build of the program",
                           "PyTorch's version", "PyTorch's build"}) {
    Facts changed = facts;
    const auto fact = std::ranges::find(changed, std::string(name), &Facts::value_type::first);
    ASSERT_NE(fact, changed.end()) << name;
    EXPECT_EQ(fact->second.find("unknown"), std::string::npos) << name << ": " << fact->second;
    fact->second = "another";
    expect_refused(2, 1, changed, facts, std::string(name) + " is another on rank 1");
  }
}

TEST(Agreement, IsNotAboutWhereThingsAre) {
  run::Recipe other = recipe();
  other.data.path = {"there"};
  other.run.out = "elsewhere";
  EXPECT_EQ(facts_of(other, {}), facts_of(recipe(), {}));
  run::Recipe first = recipe(), second = recipe();
  first.run.device = "cuda:0";
  second.run.device = "cuda:1";
  EXPECT_EQ(facts_of(first, {}), facts_of(second, {}));
  testing::run_ranks(2, [&](const distributed::World& world) {
    check_agreement(world, facts_of(world.is_first() ? first : second, {}));
  });
}

}  // namespace
}  // namespace lighthouse::train
