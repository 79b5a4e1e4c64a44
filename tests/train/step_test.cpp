#include "lighthouse/train/step.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lighthouse/model/model_config.h"
#include "tests/support/device.h"
#include "tests/support/small_model.h"

namespace lighthouse::train {
namespace {

/// The loss of a step over two rows, so many at a time.
double loss_of(const data::Batch& batch, int64_t micro_batch) {
  at::manual_seed(1);
  const auto model = model::new_model(testing::small_model(1, 0.5));
  model->to(testing::device());
  AdamW optimizer(*model, {});
  const run::StepPlan plan{nn::Mode::kDense, 2, batch.tokens.size(1), micro_batch};
  return train_step(*model, optimizer, {}, batch, plan, {}, 1e-3).loss;
}

TEST(TrainStep, TakesThePositionsOfEachMicroBatch) {
  at::manual_seed(2);
  const at::Tensor tokens = at::randint(0, 256, {2, 9}, at::kLong);
  const at::Tensor counted = at::arange(8, at::kLong);
  data::Batch batch{tokens.narrow(1, 0, 8).contiguous(), tokens.narrow(1, 1, 8).contiguous()};
  const double plain = loss_of(batch, 2);
  batch.positions = at::stack({counted, counted * 5});
  const double whole = loss_of(batch, 2);
  EXPECT_NE(whole, plain);
  // Losses of about 8, in float32, added up in another order.
  EXPECT_NEAR(loss_of(batch, 1), whole, 1e-5);
  batch.positions = batch.positions.flip(0);
  EXPECT_GT(std::abs(loss_of(batch, 1) - whole), 1e-4) << "rows must have their own positions";
}

}  // namespace
}  // namespace lighthouse::train
