#include "lighthouse/train/schedule.h"

#include <gtest/gtest.h>

namespace lighthouse::train {
namespace {

TEST(LearningRate, WarmsUpAndDecaysLinearly) {
  OptimizerRecipe recipe;
  recipe.lr = 2;
  recipe.warmup_steps = 4;
  recipe.final_lr_share = 0.25;
  const std::vector<double> expected{0.5, 1, 1.5, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_DOUBLE_EQ(learning_rate(recipe, static_cast<int64_t>(i), 10), expected[i]) << i;
  }
}

TEST(LearningRate, DecaysFromTheFirstStepWithoutAWarmUp) {
  OptimizerRecipe recipe;
  recipe.lr = 1;
  recipe.warmup_steps = 0;
  recipe.final_lr_share = 0;
  EXPECT_DOUBLE_EQ(learning_rate(recipe, 0, 4), 0.75);
  EXPECT_DOUBLE_EQ(learning_rate(recipe, 3, 4), 0);
}

}  // namespace
}  // namespace lighthouse::train
