#include "lighthouse/run/parallel.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <sstream>
#include <string>

#include "lighthouse/run/recipe_changes.h"
#include "tests/support/throws.h"

namespace lighthouse::run {
namespace {

using distributed::Exchange;
using distributed::ExchangeChoice;
using testing::throws;

/// Of 8 heads; a stage with Lighthouse, whose 1024 tokens gather 64 roots and 2 * 4 * 48 children.
Recipe recipe(int64_t context, ExchangeChoice exchange = ExchangeChoice::kAuto) {
  Recipe r;
  r.model.num_attention_heads = 8;
  r.model.num_key_value_heads = 4;
  r.data.path = {"text"};
  r.parallel.context = context;
  r.parallel.exchange = exchange;
  StageRecipe& stage = r.stages.emplace_back();
  stage.name = "long";
  stage.steps = 1;
  stage.context = 1024;
  stage.attention = nn::Mode::kLighthouse;
  stage.config.levels = 3;
  stage.config.pooling_factor = 4;
  stage.config.budget = 48;
  stage.config.tile_budget = 8;
  stage.dense_layers.clear();
  return r;
}

::testing::AssertionResult refused(const Recipe& r, std::initializer_list<std::string> parts) {
  return throws<std::invalid_argument>([&] { r.validate(); }, parts);
}

TEST(Parallel, AutoGoesByTheRowsOfTheStage) {
  Recipe r = recipe(2);
  EXPECT_EQ(exchange_of(r, r.stages[0]).exchange, Exchange::kHeads);
  r = recipe(3);
  EXPECT_EQ(exchange_of(r, r.stages[0]).exchange, Exchange::kGather);
  r.stages[0].attention = nn::Mode::kDense;
  r.stages[0].context = 3 * 2750 / 2;
  EXPECT_EQ(exchange_of(r, r.stages[0]).exchange, Exchange::kRing);
}

TEST(Parallel, AutoSharesPiecesByChunksWhereTheseCanSelect) {
  Recipe r = recipe(2);
  StageRecipe& stage = r.stages[0];
  stage.config.local = 64;
  EXPECT_EQ(exchange_of(r, stage).exchange, Exchange::kGather);
  stage.attention = nn::Mode::kLocal;
  stage.context = 1 << 20;
  EXPECT_EQ(exchange_of(r, stage).because, "pieces alone exchange nothing");
  stage.context = 1024;
  stage.attention = nn::Mode::kLighthouse;
  stage.config.budget = 46;  // of four chunks, and not to be divided
  stage.config.tile_budget = 2;
  EXPECT_EQ(exchange_of(r, stage).exchange, Exchange::kHeads);
  EXPECT_NO_THROW(r.validate());
}

/// Pieces would be shared by chunks.
TEST(Parallel, DocumentsAreKeptApartByHeadsAlone) {
  Recipe r = recipe(2);
  r.data.attention = data::Attention::kWithin;
  r.stages[0].documents_per_row = 16;
  r.stages[0].config.local = 64;
  EXPECT_EQ(exchange_of(r, r.stages[0]).exchange, Exchange::kHeads);
  EXPECT_NO_THROW(r.validate());
  r.parallel.exchange = ExchangeChoice::kRing;
  EXPECT_TRUE(refused(r, {"stage 'long'", "parallel.exchange is 'ring'",
                          "data.attention is 'within'", "must be 'heads' or 'auto'"}));
  r.parallel = {.context = 3};
  r.stages[0].context = 1026;
  EXPECT_TRUE(refused(r, {"parallel.context is 3", "data.attention is 'within'",
                          "must divide the 8 of model.num_attention_heads"}));
}

TEST(Parallel, ALengthThatRanksCannotDivideIsRefused) {
  Recipe r = recipe(4);
  EXPECT_NO_THROW(r.validate());
  r.stages[0].context = 1020;
  EXPECT_TRUE(refused(r, {"stage 'long'", "context is 1020", "parallel.context is 4",
                          "multiple of 8, such as 1024"}));
  r.stages[0].context = 1024;
  r.stages[0].dense_share = 0.5;
  r.stages[0].dense_context = 4;
  EXPECT_TRUE(refused(r, {"dense_context is 4", "multiple of 8, such as 8"}));
}

TEST(Parallel, HeadsThatRanksCannotDivideAreRefused) {
  Recipe r = recipe(3, ExchangeChoice::kHeads);
  r.stages[0].context = 1026;
  EXPECT_TRUE(refused(r, {"parallel.exchange is 'heads'", "parallel.context is 3",
                          "model.num_attention_heads", "'auto', 'gather' and 'ring'"}));
}

TEST(Parallel, ABudgetThatChunksCannotDivideIsRefused) {
  for (const auto exchange : {ExchangeChoice::kGather, ExchangeChoice::kRing}) {
    Recipe r = recipe(4, exchange);
    EXPECT_NO_THROW(r.validate());
    r.stages[0].config.budget = 44;
    r.stages[0].config.tile_budget = 4;
    EXPECT_TRUE(refused(r, {"stage 'long'", "budget is 44", "multiple of 8"}));
    r.parallel.exchange = ExchangeChoice::kHeads;
    EXPECT_NO_THROW(r.validate());
  }
}

/// Its layers would be dense without a word.
TEST(Parallel, ChunksTooShortForLighthouseAreRefused) {
  Recipe r = recipe(4, ExchangeChoice::kRing);
  r.stages[0].config.budget = 104;  // 13 of a chunk, in tiles of one
  EXPECT_TRUE(refused(r, {"parallel.exchange is 'ring'", "8 chunks of 128 tokens", "more tiles",
                          "parallel.exchange 'heads'"}));
  r.parallel.context = 2;
  EXPECT_NO_THROW(r.validate());
}

TEST(Parallel, WhatNeedsAWholeSequenceIsRefused) {
  Recipe r = recipe(2);
  r.model.rope_scaling.type = model::RopeType::kDynamic;
  EXPECT_TRUE(refused(r, {"model.rope_type is 'dynamic'", "parallel.context must be 1"}));
  r = recipe(2);
  r.run.device = "cuda";
  r.run.cuda_graphs = true;
  EXPECT_TRUE(refused(r, {"run.cuda_graphs is true", "parallel.context is 2"}));
  r.parallel.context = 0;
  EXPECT_TRUE(refused(r, {"parallel.context is 0", "at least 1"}));
}

TEST(Parallel, RanksDivideTheBatch) {
  Recipe r = recipe(2);
  r.stages[0].batch = 12;
  EXPECT_NO_THROW(check_ranks(r, 2));
  EXPECT_NO_THROW(check_ranks(r, 8));
  const auto refuses = [&](int64_t ranks, std::initializer_list<std::string> parts) {
    return throws<std::invalid_argument>([&] { check_ranks(r, ranks); }, parts);
  };
  EXPECT_TRUE(
      refuses(1, {"parallel.context is 2", "must divide the 1 ranks", "--set parallel.context=1"}));
  EXPECT_TRUE(refuses(
      10, {"stage.0.batch is 12", "multiple of the 5 ranks", "(10 ranks / parallel.context 2)"}));
  r.stages[0].micro_batch = 4;
  EXPECT_TRUE(refuses(4, {"stage.0.micro_batch is 4", "divide the 6 sequences"}));
}

/// A checkpoint resumes on any number of ranks, however they share the work.
TEST(Parallel, MayDifferFromThatOfTheCheckpoint) {
  Checkpoint checkpoint;
  checkpoint.recipe = recipe(1);
  Recipe r = recipe(4, ExchangeChoice::kRing);
  r.parallel.shard_optimizer = false;
  r.parallel.timeout = 5;
  EXPECT_TRUE(recipe_changes(r, checkpoint).empty());
  EXPECT_EQ(r.deciding_toml(), checkpoint.recipe.deciding_toml());
}

TEST(Parallel, IsPrintedWithTheExchangesThatAutoTakes) {
  const auto printed = [](const Recipe& r) {
    std::ostringstream out;
    print(out, r);
    return out.str();
  };
  EXPECT_NE(printed(recipe(2)).find("note: stage 'long' has the exchange 'heads': 2 ranks divide"),
            std::string::npos);
  EXPECT_NE(printed(recipe(1, ExchangeChoice::kRing)).find("parallel.exchange has no effect"),
            std::string::npos);
}

}  // namespace
}  // namespace lighthouse::run
