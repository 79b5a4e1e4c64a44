#include "lighthouse/run/new_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/device.h"
#include "tests/support/small_model.h"

namespace lighthouse::run {
namespace {

TEST(NewModel, HasTheWeightsOfTheSeedOnTheDevice) {
  Recipe recipe;
  recipe.model = testing::small_model(1);
  recipe.run.seed = 5;
  recipe.stages.resize(1);
  recipe.stages[0].context = 16;
  const auto model = new_model(recipe, testing::device());
  at::manual_seed(6);
  const auto same = new_model(recipe, at::kCPU);
  recipe.run.seed = 6;
  const auto other = new_model(recipe, at::kCPU);
  EXPECT_EQ(model->device().type(), testing::device().type());
  const auto expected = same->weights(), others = other->weights();
  ASSERT_EQ(model->weights().size(), expected.size());
  for (const auto& [name, weight] : model->weights()) {
    EXPECT_TRUE(at::equal(weight.cpu(), expected.at(name))) << name;
    if (weight.dim() == 1) continue;
    EXPECT_FALSE(at::equal(weight.cpu(), others.at(name))) << name;
  }
}

}  // namespace
}  // namespace lighthouse::run
