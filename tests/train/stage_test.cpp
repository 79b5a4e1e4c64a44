#include "lighthouse/train/stage.h"

#include <gtest/gtest.h>

namespace lighthouse::train {
namespace {

StageRecipe lighthouse_stage() {
  StageRecipe stage;
  stage.lighthouse = true;
  stage.context = 4096;
  stage.attention.budget = 512;
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

TEST(ComputesLighthouse, WhereItPaysInSomeStepAndLayer) {
  StageRecipe stage = lighthouse_stage();
  EXPECT_TRUE(computes_lighthouse(stage));
  EXPECT_EQ(dense_because(stage), "");
  EXPECT_EQ(count_dense_layers(stage, 8), 4);
  EXPECT_EQ(count_dense_layers(stage, 2), 2);

  stage.context = 2048;
  EXPECT_FALSE(computes_lighthouse(stage));
  EXPECT_EQ(dense_because(stage), "the gathered sequence would have 2688 rows for 2048 tokens");
  EXPECT_FALSE(step_plan(stage, 0).lighthouse);
  EXPECT_EQ(attention_plan(stage).mode, nn::Mode::kDense);
  EXPECT_EQ(count_dense_layers(stage, 8), 8);
  stage.context = 32;
  EXPECT_NE(dense_because(stage).find("more tiles"), std::string::npos);

  stage = lighthouse_stage();
  stage.dense_share = 1;
  stage.dense_context = 1024;
  EXPECT_FALSE(computes_lighthouse(stage));
  EXPECT_EQ(dense_because(stage), "its dense_share is 1");

  stage.lighthouse = false;
  EXPECT_FALSE(computes_lighthouse(stage));
  EXPECT_EQ(dense_because(stage), "");
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
