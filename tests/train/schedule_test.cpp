#include "lighthouse/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

namespace lighthouse::train {
namespace {

TEST(LearningRate, WarmsUpAndDecaysLinearly) {
  run::OptimizerRecipe recipe;
  recipe.lr = 2;
  recipe.warmup_steps = 4;
  recipe.final_lr_share = 0.25;
  const std::vector<double> expected{0.5, 1, 1.5, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_DOUBLE_EQ(learning_rate(recipe, static_cast<int64_t>(i), 10), expected[i]) << i;
  }
}

TEST(LearningRate, WarmsUpAtTheStartOfAStage) {
  run::StageRecipe stage;
  EXPECT_EQ(warmup_share(stage, 0, 0), 1);
  stage.warmup_steps = 4;
  const std::vector<double> expected{0.25, 0.5, 0.75, 1, 1, 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(warmup_share(stage, static_cast<int64_t>(i), 1e9), expected[i]) << i;
  }
}

/// A stage of so few steps that its warm-up would not end.
TEST(LearningRate, WarmsUpWithinAQuarterOfAStagesSeconds) {
  run::StageRecipe stage;
  stage.warmup_steps = 20;
  stage.seconds = 8;
  const std::vector<double> expected{0.05, 0.25, 0.5, 0.75, 1, 1, 1};  // half a second a step
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto step = static_cast<int64_t>(i);
    EXPECT_EQ(warmup_share(stage, step, 0.5 * static_cast<double>(step)), expected[i]) << i;
  }
  EXPECT_EQ(warmup_share(stage, 10, 0.25), 0.55);  // fast steps: by their number
}

/// Five steps of 2 seconds each, of a run of 10.
TEST(LearningRate, FollowsTheShareOfTheSecondsThatAreSpent) {
  run::OptimizerRecipe recipe;
  recipe.lr = 1;
  recipe.warmup_steps = 2;
  recipe.final_lr_share = 0.5;
  const auto rates = [&](run::Decay decay) {
    recipe.decay = decay;
    std::vector<double> all;
    for (const int64_t step : {0, 1, 2, 3, 4, 5}) {
      all.push_back(learning_rate(recipe, step, 2.0 * static_cast<double>(step), 10.0));
    }
    return all;
  };
  const auto expect = [&](run::Decay decay, const std::vector<double>& expected) {
    const std::vector<double> found = rates(decay);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-15) << i;
  };
  expect(run::Decay::kLinear, {0.5, 0.9, 0.8, 0.7, 0.6, 0.5});
  recipe.decay_share = 0.4;
  expect(run::Decay::kStable, {0.5, 1, 1, 1, 0.75, 0.5});
  expect(run::Decay::kCosine, {0.5, 0.75 + std::cos(std::numbers::pi / 5) / 4});
  // A step that begins after the last second: stages have one step at least.
  EXPECT_EQ(learning_rate(recipe, 6, 12.0, 10.0), 0.5);
}

TEST(LearningRate, DecaysAsACosine) {
  run::OptimizerRecipe recipe;
  recipe.lr = 2;
  recipe.warmup_steps = 2;
  recipe.decay = run::Decay::kCosine;
  recipe.final_lr_share = 0.5;
  const std::vector<double> expected{1, 2, 1.5 + std::sqrt(0.125), 1.5, 1.5 - std::sqrt(0.125), 1};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(learning_rate(recipe, static_cast<int64_t>(i), 6), expected[i], 1e-15) << i;
  }
}

TEST(LearningRate, StaysStableUntilTheDecay) {
  run::OptimizerRecipe recipe;
  recipe.lr = 1;
  recipe.warmup_steps = 2;
  recipe.decay = run::Decay::kStable;
  recipe.decay_share = 0.4;
  recipe.final_lr_share = 0.2;
  const std::vector<double> expected{0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(learning_rate(recipe, static_cast<int64_t>(i), 10), expected[i], 1e-15) << i;
  }
}

TEST(LearningRate, DecaysFromTheFirstStepWithoutAWarmUp) {
  run::OptimizerRecipe recipe;
  recipe.lr = 1;
  recipe.warmup_steps = 0;
  recipe.final_lr_share = 0;
  EXPECT_DOUBLE_EQ(learning_rate(recipe, 0, 4), 0.75);
  EXPECT_DOUBLE_EQ(learning_rate(recipe, 3, 4), 0);
}

}  // namespace
}  // namespace lighthouse::train
