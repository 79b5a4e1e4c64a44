#include "lighthouse/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

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

TEST(LearningRate, WarmsUpAtTheStartOfAStage) {
  StageRecipe stage;
  EXPECT_EQ(warmup_share(stage, 0), 1);
  stage.warmup_steps = 4;
  const std::vector<double> expected{0.25, 0.5, 0.75, 1, 1, 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(warmup_share(stage, static_cast<int64_t>(i)), expected[i]) << i;
  }
}

TEST(LearningRate, DecaysAsACosine) {
  OptimizerRecipe recipe;
  recipe.lr = 2;
  recipe.warmup_steps = 2;
  recipe.decay = Decay::kCosine;
  recipe.final_lr_share = 0.5;
  const std::vector<double> expected{1, 2, 1.5 + std::sqrt(0.125), 1.5, 1.5 - std::sqrt(0.125), 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(learning_rate(recipe, static_cast<int64_t>(i), 6), expected[i], 1e-15) << i;
  }
}

TEST(LearningRate, StaysStableUntilTheDecay) {
  OptimizerRecipe recipe;
  recipe.lr = 1;
  recipe.warmup_steps = 2;
  recipe.decay = Decay::kStable;
  recipe.decay_share = 0.4;
  recipe.final_lr_share = 0.2;
  const std::vector<double> expected{0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(learning_rate(recipe, static_cast<int64_t>(i), 10), expected[i], 1e-15) << i;
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
