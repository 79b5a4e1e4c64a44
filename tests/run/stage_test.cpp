#include "lighthouse/run/stage.h"

#include <gtest/gtest.h>

namespace lighthouse::run {
namespace {

StageRecipe lighthouse_stage() {
  StageRecipe stage;
  stage.attention = nn::Mode::kLighthouse;
  stage.context = 4096;
  stage.config.budget = 512;
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
    const bool lighthouse = plan.attention == nn::Mode::kLighthouse;
    EXPECT_EQ(lighthouse, step % 4 != 3) << step;
    EXPECT_EQ(plan.context, lighthouse ? 4096 : 1024);
    EXPECT_EQ(plan.sequences * plan.context, 4 * 4096);
    EXPECT_EQ(plan.micro_batch * plan.context, 2 * 4096);
  }
}

TEST(StepPlan, TakesTheWholeBatchAtOnceUnlessTold) {
  StageRecipe stage = lighthouse_stage();
  EXPECT_EQ(step_plan(stage, 7).micro_batch, 2);
  stage.micro_batch = 0;
  EXPECT_EQ(step_plan(stage, 7).micro_batch, 4);
  EXPECT_EQ(step_plan(stage, 7).attention, nn::Mode::kLighthouse);
}

TEST(ComputedAttention, IsLighthouseWhereItPaysInSomeStep) {
  StageRecipe stage = lighthouse_stage();
  EXPECT_EQ(computed_attention(stage), nn::Mode::kLighthouse);
  EXPECT_EQ(dense_because(stage), "");
  EXPECT_EQ(count_dense_layers(stage, 8), 4);
  EXPECT_EQ(count_dense_layers(stage, 2), 2);

  stage.context = 2048;
  EXPECT_EQ(computed_attention(stage), nn::Mode::kDense);
  EXPECT_EQ(dense_because(stage), "the gathered sequence would have 2688 rows for 2048 tokens");
  EXPECT_EQ(step_plan(stage, 0).attention, nn::Mode::kDense);
  EXPECT_EQ(attention_plan(stage).mode, nn::Mode::kDense);
  EXPECT_EQ(count_dense_layers(stage, 8), 8);
  stage.context = 32;
  EXPECT_NE(dense_because(stage).find("more tiles"), std::string::npos);

  stage = lighthouse_stage();
  stage.dense_share = 1;
  stage.dense_context = 1024;
  EXPECT_EQ(computed_attention(stage), nn::Mode::kDense);
  EXPECT_EQ(dense_because(stage), "its dense_share is 1");

  stage.attention = nn::Mode::kDense;
  EXPECT_EQ(computed_attention(stage), nn::Mode::kDense);
  EXPECT_EQ(dense_because(stage), "");
}

TEST(AttentionPlan, IsTheStages) {
  StageRecipe stage = lighthouse_stage();
  stage.config.budget = 256;
  stage.dense_layers = {1};
  const model::AttentionPlan plan = attention_plan(stage);
  EXPECT_EQ(plan.mode, nn::Mode::kLighthouse);
  EXPECT_EQ(plan.config, stage.config);
  EXPECT_EQ(plan.dense_layers, stage.dense_layers);
  stage.attention = nn::Mode::kDense;
  EXPECT_EQ(attention_plan(stage).mode, nn::Mode::kDense);
}

}  // namespace
}  // namespace lighthouse::run
