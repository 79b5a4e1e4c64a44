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

TEST(StepPlan, HasTheDocumentsOfARow) {
  StageRecipe stage = lighthouse_stage();
  EXPECT_EQ(step_plan(stage, 0).documents, 0);
  stage.documents_per_row = 100;
  stage.dense_share = 0.5;
  stage.dense_context = 64;
  EXPECT_EQ(step_plan(stage, 0).documents, 100);
  EXPECT_EQ(step_plan(stage, 1).documents, 64);
}

/// Each document begins at a root.
TEST(RowsOf, GrowWithTheDocumentsThatARowMayHave) {
  StageRecipe stage = lighthouse_stage();
  const int64_t rows = rows_of(stage);
  stage.documents_per_row = 1;
  EXPECT_EQ(rows_of(stage), rows);
  // Each of 16 more may leave 15 of 16 tokens of a root free: 15 more, with the children that all
  // roots have in a budget as large.
  stage.documents_per_row = 17;
  EXPECT_EQ(rows_of(stage), rows + 15 * 5);
  stage.documents_per_row = 4096;
  EXPECT_EQ(computed_attention(stage), nn::Mode::kDense);
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

/// Pieces alone have no gathered sequence that could be too long.
TEST(ComputedAttention, IsLocalAtAnyContext) {
  StageRecipe stage = lighthouse_stage();
  stage.attention = nn::Mode::kLocal;
  stage.config.local = 64;
  for (const int64_t context : {16, 2048, 4096}) {
    stage.context = context;
    EXPECT_EQ(dense_because(stage), "");
    EXPECT_EQ(computed_attention(stage), nn::Mode::kLocal);
    EXPECT_EQ(attention_plan(stage).mode, nn::Mode::kLocal);
  }
}

TEST(DefaultWarmupSteps, AreWhereAttentionPiecesOrContextChange) {
  StageRecipe before = lighthouse_stage();
  before.config.local = 64;
  const auto of = [&](const auto& change) {
    StageRecipe stage = before;
    stage.steps = 100;
    change(stage);
    return default_warmup_steps(stage, before);
  };
  EXPECT_EQ(of([](StageRecipe&) {}), 0);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.config.budget = 256; }), 0);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.batch = 8; }), 0);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.context = 8192; }), 20);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.attention = nn::Mode::kDense; }), 20);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.attention = nn::Mode::kLocal; }), 20);
  EXPECT_EQ(of([](StageRecipe& stage) { stage.config.local = 128; }), 20);
  // A short stage: a quarter of its steps. What a stage by seconds has is not known.
  const auto dense = [](StageRecipe& stage) { stage.attention = nn::Mode::kDense; };
  EXPECT_EQ(of([&](StageRecipe& stage) { dense(stage), stage.steps = 79; }), 19);
  EXPECT_EQ(of([&](StageRecipe& stage) { dense(stage), stage.steps = 3; }), 0);
  EXPECT_EQ(of([&](StageRecipe& stage) { dense(stage), stage.steps = 0, stage.seconds = 1; }), 20);
  // What is asked for and not computed is no change.
  before = lighthouse_stage();
  before.context = 2048;
  EXPECT_EQ(of(dense), 0);
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
