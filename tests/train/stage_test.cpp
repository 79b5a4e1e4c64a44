#include "lighthouse/train/stage.h"

#include <gtest/gtest.h>

namespace lighthouse::train {
namespace {

StageRecipe lighthouse_stage() {
  StageRecipe stage;
  stage.lighthouse = true;
  stage.context = 4096;
  stage.batch = 4;
  stage.micro_batch = 2;
  return stage;
}

TEST(StepPlan, SpreadsTheDenseShareEvenlyAndKeepsTheTokens) {
  StageRecipe stage = lighthouse_stage();
  stage.dense_share = 0.25;
  stage.dense_context = 1024;
  for (int64_t step = 0; step < 40; ++step) {
    const StepPlan plan = step_plan(stage, step);
    EXPECT_EQ(plan.lighthouse, step % 4 != 3) << step;
    EXPECT_EQ(plan.context, plan.lighthouse ? 4096 : 1024);
    EXPECT_EQ(plan.sequences * plan.context, 4 * 4096);
    EXPECT_EQ(plan.micro_batch * plan.context, 2 * 4096);
  }
}

TEST(StepPlan, TakesTheWholeBatchAtOnceUnlessTold) {
  StageRecipe stage = lighthouse_stage();
  EXPECT_EQ(step_plan(stage, 7).micro_batch, 2);
  stage.micro_batch = 0;
  EXPECT_EQ(step_plan(stage, 7).micro_batch, 4);
  EXPECT_TRUE(step_plan(stage, 7).lighthouse);
}

TEST(AttentionPlan, IsTheStages) {
  StageRecipe stage = lighthouse_stage();
  stage.attention.budget = 256;
  stage.dense_layers = {1};
  const model::AttentionPlan plan = attention_plan(stage);
  EXPECT_EQ(plan.mode, nn::Mode::kLighthouse);
  EXPECT_EQ(plan.config, stage.attention);
  EXPECT_EQ(plan.dense_layers, stage.dense_layers);
  stage.lighthouse = false;
  EXPECT_EQ(attention_plan(stage).mode, nn::Mode::kDense);
}

}  // namespace
}  // namespace lighthouse::train
