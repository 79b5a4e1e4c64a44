#include "lighthouse/data/batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/throws.h"

namespace lighthouse::data {
namespace {

TEST(Batch, LeavesUndefinedWhatIsUndefined) {
  const at::Tensor tokens = at::arange(12, at::kLong).view({3, 4});
  const Batch batch{.tokens = tokens, .positions = tokens + 1};
  for (const Batch& other : {batch.to(at::kCPU), batch.rows(1, 2)}) {
    EXPECT_FALSE(other.targets.defined());
    EXPECT_FALSE(other.document_starts.defined());
  }
  EXPECT_TRUE(at::equal(batch.rows(1, 2).tokens, tokens.narrow(0, 1, 2)));
  EXPECT_TRUE(at::equal(batch.rows(1, 2).positions, tokens.narrow(0, 1, 2) + 1));
}

TEST(Batch, GivesChunksOfRowsWithTheirPositions) {
  const at::Tensor tokens = at::arange(24, at::kLong).view({2, 12});
  const Batch part = Batch{.tokens = tokens, .targets = tokens + 1}.chunks({1, 2}, 4);
  const at::Tensor expected = at::cat({tokens.narrow(1, 3, 3), tokens.narrow(1, 6, 3)}, 1);
  EXPECT_TRUE(part.tokens.equal(expected));
  EXPECT_TRUE(part.targets.equal(expected + 1));
  EXPECT_TRUE(part.positions.equal(at::arange(3, 9, at::kLong).expand({2, 6})));
  const Batch again = part.chunks({1}, 2);  // of positions that there are already
  EXPECT_TRUE(again.positions.equal(at::arange(6, 9, at::kLong).expand({2, 3})));
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [&] { Batch{tokens}.chunks({0}, 5); },
      {"has 12 tokens", "5 equal chunks", "a multiple of 5"}));
}

/// Every rank that shares a row attends to some heads of all of it.
TEST(Batch, GivesChunksTheDocumentsOfTheirWholeRows) {
  const at::Tensor tokens = at::arange(24, at::kLong).view({2, 12});
  const at::Tensor starts = at::tensor({0, 5, 12, 0, 12, 12}, at::kInt).view({2, 3});
  const Batch part = Batch{.tokens = tokens, .document_starts = starts}.chunks({0, 3}, 4);
  EXPECT_EQ(part.tokens.size(1), 6);
  EXPECT_TRUE(part.document_starts.equal(starts));
}

TEST(Batch, CountsPlacesAndTargets) {
  const at::Tensor tokens = at::zeros({2, 7}, at::kLong);
  Batch batch{.tokens = tokens, .targets = tokens.clone()};
  const at::Tensor counted = at::arange(7, at::kLong);
  EXPECT_TRUE(batch.places_in_documents().equal(counted.expand({2, 7})));
  EXPECT_EQ(batch.count_targets(), 14);
  batch.document_starts = at::tensor({0, 7, 7, 0, 3, 4}, at::kInt).view({2, 3});
  const at::Tensor places = at::tensor({0, 1, 2, 0, 0, 1, 2}, at::kLong);
  EXPECT_TRUE(batch.places_in_documents().equal(at::stack({counted, places})));
  batch.targets[1][2] = kNoTarget;
  EXPECT_EQ(batch.count_targets(), 13);
}

TEST(Batch, MovesAllThatItHas) {
  const at::Tensor tokens = at::zeros({1, 2}, at::kLong);
  const Batch batch{tokens, tokens, tokens, tokens.to(at::kInt)};
  const Batch moved = batch.to(at::kMeta);
  for (const at::Tensor* tensor :
       {&moved.tokens, &moved.targets, &moved.positions, &moved.document_starts}) {
    EXPECT_TRUE(tensor->is_meta());
  }
  EXPECT_EQ(moved.document_starts.scalar_type(), at::kInt);
}

}  // namespace
}  // namespace lighthouse::data
