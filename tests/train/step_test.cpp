#include "lighthouse/train/step.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "lighthouse/model/model_config.h"
#include "tests/support/device.h"
#include "tests/support/small_model.h"

namespace lighthouse::train {
namespace {

/// The loss of a step over two rows, `micro_batch` at a time.
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

/// Two rows: of documents of 5, 1, 6 and of 9, 3 tokens.
data::Batch packed_documents() {
  at::manual_seed(3);
  data::Batch batch;
  batch.tokens = at::randint(0, 256, {2, 12}, at::kLong);
  batch.targets = at::cat({batch.tokens.slice(1, 1), at::full({2, 1}, 7, at::kLong)}, 1);
  for (const auto& [row, last] :
       {std::pair(0, 4), std::pair(0, 5), std::pair(0, 11), std::pair(1, 8)}) {
    batch.targets[row][last] = data::kNoTarget;
  }
  batch.document_starts = at::tensor({0, 5, 6, 12, 0, 9, 12, 12}, at::kInt).view({2, 4});
  return batch;
}

/// The last document goes on in another row: its last token counts.
TEST(TrainStep, HasTheLossAndGradientsOfEachDocumentAlone) {
  const data::Batch packed = packed_documents();
  at::manual_seed(1);
  const auto alone = model::new_model(testing::small_model(2, 0.5));
  alone->to(testing::device());
  double sum = 0;
  const auto add = [&](int64_t row, int64_t begin, int64_t end) {
    const auto of = [&](const at::Tensor& all) {
      return all.narrow(0, row, 1).slice(1, begin, end);
    };
    const data::Batch document{of(packed.tokens), of(packed.targets)};
    const at::Tensor losses = alone->token_losses(document.to(testing::device()), 0.1);
    sum += losses.sum().item<double>();
    losses.sum().backward();
  };
  for (const auto& [row, begin, end] : std::vector<std::array<int64_t, 3>>{
           {0, 0, 5}, {0, 5, 6}, {0, 6, 12}, {1, 0, 9}, {1, 9, 12}}) {
    add(row, begin, end);
  }
  double squares = 0;
  for (const at::Tensor& parameter : alone->parameters()) {
    squares += parameter.grad().to(at::kDouble).square().sum().item<double>();
  }
  constexpr double kCounted = 4 + 5 + 8 + 3;
  EXPECT_EQ(packed.count_targets(), kCounted);
  for (const int64_t micro_batch : {2, 1}) {
    at::manual_seed(1);
    const auto model = model::new_model(testing::small_model(2, 0.5));
    model->to(testing::device());
    run::OptimizerRecipe recipe;
    recipe.z_loss = 0.1;
    AdamW optimizer(*model, recipe);
    const run::StepPlan plan{nn::Mode::kDense, 2, 12, micro_batch, 4};
    const StepResult done = train_step(*model, optimizer, {}, packed, plan, recipe, 1e-3);
    EXPECT_NEAR(done.loss / (sum / kCounted), 1, 1e-6) << micro_batch;
    EXPECT_NEAR(done.grad_norm / (std::sqrt(squares) / kCounted), 1, 1e-5) << micro_batch;
  }
}

TEST(TrainStep, IsSkippedWhereNoTokenHasATarget) {
  data::Batch batch = packed_documents();
  batch.targets.fill_(data::kNoTarget);
  at::manual_seed(1);
  const auto model = model::new_model(testing::small_model(1));
  AdamW optimizer(*model, {});
  EXPECT_TRUE(
      train_step(*model, optimizer, {}, batch, {nn::Mode::kDense, 2, 12, 2, 4}, {}, 1).skipped);
}

}  // namespace
}  // namespace lighthouse::train
