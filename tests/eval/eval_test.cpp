#include "lighthouse/eval/eval.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "tests/distributed/ranks.h"
#include "tests/eval/support.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

namespace lighthouse::eval {
namespace {

using Bytes = std::vector<uint8_t>;

std::vector<data::Batch> random_batches(int64_t count, int64_t sequences, int64_t tokens) {
  std::vector<data::Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor text = at::randint(0, 256, {sequences, tokens + 1}, at::kLong);
    batches.push_back({text.slice(1, 0, tokens).contiguous(), text.slice(1, 1).clone()});
  }
  return batches;
}

TEST(HeldOutLoss, IsTheMeanOverSequencesAsAWholeAndByPosition) {
  at::manual_seed(1);
  model::Llama model(small_config());
  std::vector<data::Batch> batches = random_batches(1, 2, 150);
  batches.push_back(random_batches(1, 1, 150)[0]);
  const HeldOutLoss found = held_out_loss(*model, batches, false);

  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> rows;
  rows.reserve(batches.size());
  for (const auto& batch : batches) {
    rows.push_back(model->token_losses(batch).to(at::kDouble));
  }
  const at::Tensor losses = at::cat(rows);
  const auto expect = [](const Estimate& actual, const at::Tensor& means) {
    EXPECT_NEAR(actual.mean, means.mean().item<double>(), 1e-12);
    EXPECT_NEAR(actual.standard_error, means.std().item<double>() / std::sqrt(3.0), 1e-12);
  };
  expect(found.all, losses.mean(1));
  ASSERT_EQ(found.of_sequences.size(), 3u);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(found.of_sequences[i], losses[i].mean().item<double>(), 1e-12);
  }
  const std::vector<std::pair<int64_t, int64_t>> bins{{0, 63}, {64, 127}, {128, 149}};
  ASSERT_EQ(found.by_position.size(), bins.size());
  for (size_t i = 0; i < bins.size(); ++i) {
    EXPECT_EQ(found.by_position[i].first, bins[i].first);
    EXPECT_EQ(found.by_position[i].last, bins[i].second);
    expect(found.by_position[i].estimate,
           losses.slice(1, bins[i].first, bins[i].second + 1).mean(1));
  }

  const HeldOutLoss one = held_out_loss(*model, random_batches(1, 1, 10), false);
  EXPECT_TRUE(std::isnan(one.all.standard_error));
  ASSERT_EQ(one.by_position.size(), 1u);
  EXPECT_EQ(one.by_position[0].last, 9);
  EXPECT_EQ(one.by_position[0].estimate.mean, one.all.mean);
  EXPECT_THROW(held_out_loss(*model, {}, false), std::invalid_argument);
  batches.push_back(random_batches(1, 1, 100)[0]);
  EXPECT_THROW(held_out_loss(*model, batches, false), std::invalid_argument);
}

TEST(HeldOutLoss, IsDenseOrAsTrainedAndLeavesTheModelAsItWas) {
  at::manual_seed(2);
  model::Llama model(small_config());
  const auto batches = random_batches(2, 1, 512);
  const double dense = held_out_loss(*model, batches, false).all.mean;
  EXPECT_EQ(held_out_loss(*model, batches, true).all.mean, dense);
  model->set_attention(plan_of(SelectionRule::kPublished));
  EXPECT_EQ(held_out_loss(*model, batches, false).all.mean, dense);
  EXPECT_NE(held_out_loss(*model, batches, true).all.mean, dense);
  EXPECT_TRUE(model->is_training());
  EXPECT_FALSE(model->lighthouse_in_eval());
  model->eval();
  model->set_lighthouse_in_eval(true);
  held_out_loss(*model, batches, false);
  EXPECT_FALSE(model->is_training());
  EXPECT_TRUE(model->lighthouse_in_eval());
  EXPECT_FALSE(model->parameters()[0].grad().defined());
}

/// Documents of 100 and 50 tokens, of 150, and of 150 of which each is one.
std::vector<data::Batch> documents() {
  auto batches = random_batches(3, 1, 150);
  batches[0].document_starts = at::tensor({0, 100, 150}, at::kInt).unsqueeze(0);
  batches[1].document_starts = at::tensor({0, 150, 150}, at::kInt).unsqueeze(0);
  batches[2].document_starts = at::arange(150, at::kInt).unsqueeze(0);
  batches[0].targets[0][99] = batches[0].targets[0][149] = data::kNoTarget;
  batches[2].targets.fill_(data::kNoTarget);
  return batches;
}

TEST(HeldOutLoss, CountsPositionsInDocumentsAndTokensThatHaveATarget) {
  at::manual_seed(1);
  model::Llama model(small_config());
  const auto batches = documents();
  const HeldOutLoss found = held_out_loss(*model, batches, false);
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> losses;
  for (int i = 0; i < 2; ++i) losses.push_back(model->token_losses(batches[i]).to(at::kDouble)[0]);
  EXPECT_EQ(losses[0][99].item<double>(), 0);
  const double first = losses[0].sum().item<double>() / 148,
               second = losses[1].mean().item<double>();
  EXPECT_NEAR(found.all.mean, (first + second) / 2, 1e-12);
  ASSERT_EQ(found.of_sequences.size(), 2u);  // the third has none
  EXPECT_NEAR(found.of_sequences[0], first, 1e-12);
  ASSERT_EQ(found.by_position.size(), 3u);
  const at::Tensor near =
      at::cat({losses[0].slice(0, 0, 64), losses[0].slice(0, 100, 149)});  // 63, and 49
  EXPECT_NEAR(found.by_position[0].estimate.mean,
              (near.mean().item<double>() + losses[1].slice(0, 0, 64).mean().item<double>()) / 2,
              1e-12);
  EXPECT_NEAR(found.by_position[1].estimate.mean,
              (losses[0].slice(0, 64, 99).mean().item<double>() +
               losses[1].slice(0, 64, 128).mean().item<double>()) /
                  2,
              1e-12);
  // The first has no position that far.
  EXPECT_EQ(found.by_position[2].first, 128);
  EXPECT_NEAR(found.by_position[2].estimate.mean, losses[1].slice(0, 128).mean().item<double>(),
              1e-12);
  const HeldOutLoss short_ones = held_out_loss(*model, {batches[0]}, false);
  EXPECT_EQ(short_ones.by_position.size(), 2u);
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [&] { held_out_loss(*model, {batches[2]}, false); }, {"0 tokens with a target"}));
}

/// Pieces of 128 tokens, in the second layer begun after 64: up to there a position hears what it
/// does with dense attention.
TEST(HeldOutLoss, OfPiecesIsDenseUpToTheFirstBorder) {
  at::manual_seed(2);
  model::Llama model(small_config());
  const auto batches = random_batches(2, 1, 512);
  const HeldOutLoss dense = held_out_loss(*model, batches, false);
  for (const auto& plan : {pieces_of(128), plan_of(SelectionRule::kCausal, 128)}) {
    const bool alone = plan.mode == nn::Mode::kLocal;
    model->set_attention(plan);
    EXPECT_EQ(held_out_loss(*model, batches, false).all.mean, dense.all.mean);
    const HeldOutLoss trained = held_out_loss(*model, batches, true);
    ASSERT_EQ(trained.by_position.size(), dense.by_position.size());
    for (size_t i = 0; i < dense.by_position.size(); ++i) {
      const double difference =
          std::abs(trained.by_position[i].estimate.mean - dense.by_position[i].estimate.mean);
      if (alone && i == 0) {
        EXPECT_LT(difference, 1e-5);
      } else {
        EXPECT_GT(difference, 1e-5) << "alone " << alone << ", bin " << i;
      }
    }
  }
}

void expect_same(const std::vector<Bin>& found, const std::vector<Bin>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    EXPECT_EQ(found[i].last, expected[i].last);
    EXPECT_EQ(found[i].estimate.mean, expected[i].estimate.mean);
    const double error = expected[i].estimate.standard_error;  // NaN where one sequence has some
    EXPECT_TRUE(found[i].estimate.standard_error == error ||
                (std::isnan(found[i].estimate.standard_error) && std::isnan(error)));
  }
}

/// To the bit, also of ranks that have less to measure than others, or nothing.
TEST(Ranks, MeasureWhatOneProcessDoes) {
  const testing::Threads one(1);
  at::manual_seed(5);
  const auto config = small_config();
  model::Llama model(config);
  model->set_attention(plan_of(SelectionRule::kPublished));
  std::vector<data::Batch> batches = random_batches(3, 1, 512);
  batches[1] = random_batches(1, 2, 512)[0];
  const HeldOutLoss loss = held_out_loss(*model, batches, true);
  const auto leak = selection_leak(*model, batches, 2, 1, true);
  for (const int64_t ranks : {2, 4}) {
    auto models = copies_of(model, config, ranks);
    testing::run_ranks(ranks, [&](const distributed::World& world) {
      auto& own = models[world.rank()];
      own->set_attention(plan_of(SelectionRule::kPublished));
      int64_t asked = 0;
      const auto ask_all = [&] { asked += world.any(true) ? 1 : 0; };
      const HeldOutLoss found = held_out_loss(*own, batches, true, ask_all, {world, {}});
      EXPECT_EQ(asked, ranks == 2 ? 2 : 1);
      EXPECT_EQ(found.all.mean, loss.all.mean);
      EXPECT_EQ(found.all.standard_error, loss.all.standard_error);
      EXPECT_EQ(found.of_sequences, loss.of_sequences);
      expect_same(found.by_position, loss.by_position);
      expect_same(selection_leak(*own, batches, 2, 1, true, {world, {}}), leak);
    });
  }
}

void expect_near(const std::vector<Bin>& found, const std::vector<Bin>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    EXPECT_NEAR(found[i].estimate.mean, expected[i].estimate.mean, 1e-6);
    EXPECT_NEAR(found[i].estimate.standard_error, expected[i].estimate.standard_error, 1e-6);
  }
}

/// Products of fewer rows are rounded in other places.
TEST(Ranks, ShareEachSequence) {
  const testing::Threads one(1);
  at::manual_seed(5);
  const auto config = small_config();
  model::Llama model(config);
  model->set_attention(plan_of(SelectionRule::kPublished));
  const auto batches = random_batches(3, 1, 512);
  const HeldOutLoss loss = held_out_loss(*model, batches, true);
  const auto leak = selection_leak(*model, batches, 1, 1, true);
  ASSERT_GT(std::abs(leak[0].estimate.mean), 1e-4);
  auto models = copies_of(model, config, 4);
  testing::run_ranks(4, [&](const distributed::World& world) {
    const auto mesh = distributed::Mesh::of(world, 2);
    auto plan = plan_of(SelectionRule::kPublished);
    plan.context = {.group = mesh.context.group(), .zigzag = true};
    auto& own = models[world.rank()];
    own->set_attention(plan);
    int64_t asked = 0;
    const auto ask_all = [&] { asked += world.any(true) ? 1 : 0; };
    const HeldOutLoss found = held_out_loss(*own, batches, true, ask_all, mesh);
    EXPECT_EQ(asked, 2);
    EXPECT_NEAR(found.all.mean, loss.all.mean, 1e-6);
    ASSERT_EQ(found.of_sequences.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(found.of_sequences[i], loss.of_sequences[i], 1e-6);
    }
    expect_near(found.by_position, loss.by_position);
    expect_near(selection_leak(*own, batches, 1, 1, true, mesh), leak);
  });
}

TEST(Ranks, MeasureDocumentsAsOneProcessDoes) {
  const testing::Threads one(1);
  at::manual_seed(5);
  const auto config = small_config();
  model::Llama model(config);
  const auto batches = documents();
  const HeldOutLoss loss = held_out_loss(*model, batches, false);
  const auto leak = selection_leak(*model, batches, 3, 1, false);
  auto models = copies_of(model, config, 2);
  testing::run_ranks(2, [&](const distributed::World& world) {
    const HeldOutLoss found = held_out_loss(*models[world.rank()], batches, false, {}, {world, {}});
    EXPECT_EQ(found.of_sequences, loss.of_sequences);
    expect_same(found.by_position, loss.by_position);
    expect_same(selection_leak(*models[world.rank()], batches, 3, 1, false, {world, {}}), leak);
  });
}

TEST(TokenFrequencyLoss, IsTheCrossEntropyUnderSmoothedFrequencies) {
  // Counts with one added: 3 of a, 2 of b, 1 of each other, 259 together.
  const Bytes train{'a', 'b', 'a'}, held_out{'a', 'b', 'c', 'c'};
  const double expected =
      -(std::log(3.0 / 259) + std::log(2.0 / 259) + 2 * std::log(1.0 / 259)) / 4;
  EXPECT_NEAR(token_frequency_loss(train, held_out), expected, 1e-12);
  EXPECT_NEAR(token_frequency_loss({}, held_out), std::log(256.0), 1e-12);
  EXPECT_THROW(token_frequency_loss(train, {}), std::invalid_argument);
}

TEST(SelectionLeak, OfDenseAttentionIsExactlyZero) {
  at::manual_seed(3);
  model::Llama model(small_config());
  model->set_attention(plan_of(SelectionRule::kPublished));
  const auto leak = selection_leak(*model, random_batches(2, 2, 512), 4, 1, false);
  ASSERT_EQ(leak.size(), 5u);
  const std::vector<std::pair<int64_t, int64_t>> bins{{1, 1}, {2, 4}, {5, 16}, {17, 64}, {65, 256}};
  for (size_t i = 0; i < leak.size(); ++i) {
    EXPECT_EQ(leak[i].first, bins[i].first);
    EXPECT_EQ(leak[i].last, bins[i].second);
    EXPECT_EQ(leak[i].estimate.mean, 0);
    EXPECT_EQ(leak[i].estimate.standard_error, 0);
  }
}

/// Of pieces that do not divide the sequence.
TEST(SelectionLeak, OfPiecesAloneIsExactlyZero) {
  at::manual_seed(3);
  model::Llama model(small_config());
  model->set_attention(pieces_of(48));
  const auto leak = selection_leak(*model, random_batches(2, 2, 512), 4, 1, true);
  ASSERT_EQ(leak.size(), 5u);
  for (const Bin& bin : leak) {
    EXPECT_EQ(bin.estimate.mean, 0) << bin.first;
    EXPECT_EQ(bin.estimate.standard_error, 0) << bin.first;
  }
}

/// The same weights and cuts: what leaks comes by Lighthouse's branch.
TEST(SelectionLeak, OfPiecesBesideLighthouseIsSeen) {
  at::manual_seed(4);
  model::Llama model(small_config());
  model->set_attention(plan_of(SelectionRule::kPublished, 48));
  const auto leak = selection_leak(*model, random_batches(1, 1, 512), 8, 1, true);
  ASSERT_EQ(leak.size(), 5u);
  EXPECT_NE(leak[0].estimate.mean, 0);
  EXPECT_GT(leak[0].estimate.standard_error, 0);
}

TEST(SelectionLeak, OfThePublishedRuleIsSeen) {
  at::manual_seed(4);
  model::Llama model(small_config());
  model->set_attention(plan_of(SelectionRule::kPublished));
  const auto batches = random_batches(1, 1, 512);
  const auto leak = selection_leak(*model, batches, 8, 1, true);
  EXPECT_NE(leak[0].estimate.mean, 0);
  EXPECT_GT(leak[0].estimate.standard_error, 0);
  EXPECT_TRUE(model->is_training());
  EXPECT_FALSE(model->lighthouse_in_eval());

  const auto again = selection_leak(*model, batches, 8, 1, true);
  EXPECT_EQ(again[0].estimate.mean, leak[0].estimate.mean);
  EXPECT_EQ(again[0].estimate.standard_error, leak[0].estimate.standard_error);
  EXPECT_NE(selection_leak(*model, batches, 8, 2, true)[0].estimate.mean, leak[0].estimate.mean);
}

TEST(SelectionLeak, MeasuresOneCutByHand) {
  at::manual_seed(7);  // whose cut changes what is selected
  model::ModelConfig config = small_config();
  config.vocab_size = 2;  // so that there is one other token
  model::Llama model(config);
  model->set_attention(plan_of(SelectionRule::kPublished));
  data::Batch batch = random_batches(1, 1, 256)[0];
  batch.tokens.remainder_(2);
  batch.targets.remainder_(2);
  const auto leak = selection_leak(*model, {batch}, 1, 3, true);

  // With 256 tokens the cut is at 128 or later. Every cut that it may have been at:
  const at::NoGradGuard no_grad;
  const at::Tensor before = model->token_losses(batch).to(at::kDouble);
  int matches = 0;
  for (int64_t cut = 128; cut < 256; ++cut) {
    at::Tensor tokens = batch.tokens.clone();
    tokens.slice(1, cut).neg_().add_(1);
    const at::Tensor rise = model->token_losses({tokens, batch.targets}).to(at::kDouble) - before;
    bool all = true;
    for (const Bin& bin : leak) {
      const at::Tensor part =
          rise.slice(1, std::max<int64_t>(0, cut - bin.last), cut - bin.first + 1);
      all &= std::abs(part.mean().item<double>() - bin.estimate.mean) < 1e-12;
      EXPECT_TRUE(std::isnan(bin.estimate.standard_error));
    }
    matches += all;
  }
  EXPECT_EQ(matches, 1);
}

/// Whose zero losses would make the leak seem smaller than it is.
TEST(SelectionLeak, IsOfPositionsThatHaveATarget) {
  at::manual_seed(4);
  model::Llama model(small_config());
  model->set_attention(plan_of(SelectionRule::kPublished));
  auto batches = random_batches(1, 1, 512);
  const auto all = selection_leak(*model, batches, 8, 1, true);
  batches[0].targets.slice(1, 0, 512, 2).fill_(data::kNoTarget);
  const auto half = selection_leak(*model, batches, 8, 1, true);
  batches[0].targets.fill_(data::kNoTarget);
  EXPECT_EQ(selection_leak(*model, batches, 8, 1, true).size(), 0u);
  ASSERT_EQ(half.size(), 5u);
  EXPECT_GT(half.back().estimate.mean / all.back().estimate.mean, 0.6);
}

TEST(SelectionLeak, LeavesOutBinsWithoutPositions) {
  at::manual_seed(6);
  model::Llama model(small_config());
  const auto batches = random_batches(1, 1, 4);
  EXPECT_EQ(selection_leak(*model, batches, 20, 1, false).size(), 2u);
  EXPECT_THROW(selection_leak(*model, random_batches(1, 1, 1), 1, 1, false), std::invalid_argument);
  EXPECT_THROW(selection_leak(*model, batches, 0, 1, false), std::invalid_argument);
  EXPECT_THROW(selection_leak(*model, {}, 1, 1, false), std::invalid_argument);
}

}  // namespace
}  // namespace lighthouse::eval
