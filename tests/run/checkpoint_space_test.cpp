#include "lighthouse/run/checkpoint_space.h"

#include <gtest/gtest.h>

#include "tests/support/folder.h"
#include "tests/support/throws.h"

namespace lighthouse::run {
namespace {

using testing::throws;

/// A run of 1000 steps in two stages.
Recipe recipe_of(int64_t every, int64_t keep, int64_t keep_every) {
  Recipe recipe;
  recipe.data.path = {"text"};
  recipe.run.checkpoint_every_steps = every;
  recipe.run.keep_checkpoints = keep;
  recipe.run.keep_every_steps = keep_every;
  for (const char* name : {"a", "b"}) {
    StageRecipe& stage = recipe.stages.emplace_back();
    stage.name = name;
    stage.steps = 500;
    stage.context = 128;
  }
  return recipe;
}

/// How many checkpoints' room is enough to say nothing.
int64_t enough(const Recipe& recipe, int64_t present = 0) {
  for (int64_t room = 1;; ++room) {
    const double free = static_cast<double>(room) * checkpoint_bytes(recipe);
    if (check_checkpoint_space(recipe, present, free, "here").empty()) return room;
  }
}

TEST(CheckpointSpace, CountsWhatIsOnTheDiskAtOnce) {
  EXPECT_EQ(enough(recipe_of(100, 2, 0)), 3);     // one is written before one is removed
  EXPECT_EQ(enough(recipe_of(100, 2, 0), 2), 1);  // two of them are there
  EXPECT_EQ(enough(recipe_of(100, 5, 0)), 6);
  EXPECT_EQ(enough(recipe_of(100, 2, 200)), 3 + 5);  // five are kept for good
  EXPECT_EQ(enough(recipe_of(10000, 5, 0)), 2);      // no more than the ends of the stages
}

TEST(CheckpointSpace, WarnsAndNamesWhatIsNeeded) {
  const Recipe recipe = recipe_of(100, 2, 0);
  const double each = checkpoint_bytes(recipe);
  const std::string warning = check_checkpoint_space(recipe, 0, 2.5 * each, "here");
  for (const char* part : {"3 more of 15.4 MiB each", "run.keep_checkpoints is 2",
                           "run.keep_every_steps is 0", "here has 38.5 MiB free"}) {
    EXPECT_NE(warning.find(part), std::string::npos) << part << " is not in: " << warning;
  }
}

TEST(CheckpointSpace, RefusesWhereNotEvenOneFits) {
  const Recipe recipe = recipe_of(100, 2, 0);
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { check_checkpoint_space(recipe, 2, 0.9 * checkpoint_bytes(recipe), "here"); },
      {"no room for a checkpoint", "needs 15.4 MiB", "here has 13.9 MiB free"}));
}

TEST(CheckpointSpace, LooksAtTheDiskOfAFolderThatIsNotThereYet) {
  const testing::Folder folder;
  Recipe recipe = recipe_of(100, 2, 0);
  EXPECT_EQ(check_checkpoint_space(recipe, RunFolder(folder / "new/run")), "");
  recipe.model.vocab_size = int64_t{1} << 40;  // 3 PiB
  EXPECT_TRUE(throws<std::invalid_argument>(
      [&] { check_checkpoint_space(recipe, RunFolder(folder / "new/run")); },
      {"no room for a checkpoint", "the disk of '" + (folder / "new/run").string() + "' has "}));
}

}  // namespace
}  // namespace lighthouse::run
