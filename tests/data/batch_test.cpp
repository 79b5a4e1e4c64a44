#include "lighthouse/data/batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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
