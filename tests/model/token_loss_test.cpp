#include "lighthouse/model/token_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "lighthouse/data/batch.h"
#include "tests/model/support.h"
#include "tests/support/throws.h"

namespace lighthouse::model {
namespace {

using at::Tensor;
using testing::relative_error;

struct Problem {
  Tensor hidden, weight, targets, grad;

  // A vocabulary of 5000 takes 256 positions a chunk, so 600 positions are three, the last partial.
  explicit Problem(at::ScalarType type, int64_t positions = 600, int64_t vocabulary = 5000)
      : hidden(at::randn({positions, 12}, at::kDouble).to(type).requires_grad_()),
        weight(at::randn({vocabulary, 12}, at::kDouble).to(type).requires_grad_()),
        targets(at::randint(0, vocabulary, {positions}, at::kLong)),
        grad(at::randn({positions}, at::kDouble)) {}
};

void expect_plain_cross_entropy(at::ScalarType type, double tolerance, int64_t positions,
                                int64_t vocabulary) {
  at::manual_seed(1);
  const Problem problem(type, positions, vocabulary);
  const Tensor losses = token_loss(problem.hidden, problem.weight, problem.targets);
  losses.backward(problem.grad.to(losses.scalar_type()));

  const Tensor hidden = problem.hidden.detach().to(at::kDouble).requires_grad_();
  const Tensor weight = problem.weight.detach().to(at::kDouble).requires_grad_();
  const Tensor plain =
      at::cross_entropy_loss(at::linear(hidden, weight), problem.targets, {}, at::Reduction::None);
  plain.backward(problem.grad);
  EXPECT_LE(relative_error(losses.detach(), plain.detach()), tolerance);
  EXPECT_LE(relative_error(problem.hidden.grad(), hidden.grad()), tolerance);
  EXPECT_LE(relative_error(problem.weight.grad(), weight.grad()), tolerance);
  EXPECT_EQ(problem.hidden.grad().scalar_type(), type);
  EXPECT_EQ(problem.weight.grad().scalar_type(), type);
}

TEST(TokenLoss, IsPlainCrossEntropyOverSeveralChunks) {
  expect_plain_cross_entropy(at::kDouble, 1e-12, 600, 5000);
  expect_plain_cross_entropy(at::kFloat, 1e-5, 600, 5000);
}

TEST(TokenLoss, IsPlainCrossEntropyOverOneChunk) {
  expect_plain_cross_entropy(at::kDouble, 1e-12, 1, 2);
  expect_plain_cross_entropy(at::kDouble, 1e-12, 256, 5000);
}

/// As if their positions were not there.
TEST(TokenLoss, LeavesOutPositionsWithoutATarget) {
  at::manual_seed(5);
  Problem problem(at::kDouble);
  const Tensor kept = at::rand({600}).gt(0.4);
  problem.targets.masked_fill_(kept.logical_not(), data::kNoTarget);
  const auto results = [&](const Tensor& mask) {
    const Tensor hidden =
        problem.hidden.detach().masked_select(mask.unsqueeze(1)).view({-1, 12}).requires_grad_();
    const Tensor losses =
        token_loss(hidden, problem.weight, problem.targets.masked_select(mask), /*z_loss=*/0.3);
    const auto grads = torch::autograd::grad({losses}, {hidden, problem.weight},
                                             {problem.grad.masked_select(mask)});
    return std::vector<Tensor>{losses.detach(), grads[0], grads[1]};
  };
  const auto all = results(at::ones_like(kept)), of_kept = results(kept);
  for (const int i : {0, 1}) {
    EXPECT_LE(relative_error(all[i].index_select(0, kept.nonzero().squeeze(1)), of_kept[i]), 1e-12);
    const Tensor others = all[i].index_select(0, kept.logical_not().nonzero().squeeze(1));
    EXPECT_EQ(others.abs().max().item<double>(), 0);
  }
  EXPECT_LE(relative_error(all[2], of_kept[2]), 1e-12);
}

TEST(TokenLoss, DifferentiatesTheZLossToo) {
  at::manual_seed(4);
  const double z_loss = 0.3;
  const Problem problem(at::kDouble);
  const Tensor losses = token_loss(problem.hidden, problem.weight, problem.targets, z_loss);
  EXPECT_TRUE(at::equal(losses, token_loss(problem.hidden, problem.weight, problem.targets)));
  losses.backward(problem.grad);

  const Tensor hidden = problem.hidden.detach().clone().requires_grad_();
  const Tensor weight = problem.weight.detach().clone().requires_grad_();
  const Tensor logits = at::linear(hidden, weight);
  const Tensor plain = at::cross_entropy_loss(logits, problem.targets, {}, at::Reduction::None) +
                       z_loss * at::logsumexp(logits, 1).square();
  plain.backward(problem.grad);
  EXPECT_LE(relative_error(problem.hidden.grad(), hidden.grad()), 1e-12);
  EXPECT_LE(relative_error(problem.weight.grad(), weight.grad()), 1e-12);
}

TEST(TokenLoss, IsFloat32ForBfloat16) {
  at::manual_seed(2);
  const Problem problem(at::kBFloat16);
  EXPECT_EQ(token_loss(problem.hidden, problem.weight, problem.targets).scalar_type(), at::kFloat);
  // Logits and their gradients are rounded to 8 bits.
  expect_plain_cross_entropy(at::kBFloat16, 2e-2, 600, 5000);
}

TEST(TokenLoss, TakesAnExpandedGradient) {
  at::manual_seed(3);
  const Problem problem(at::kDouble, 10, 7);
  token_loss(problem.hidden, problem.weight, problem.targets).sum().backward();
  const Tensor grad = problem.hidden.grad().clone();
  problem.hidden.mutable_grad().reset();
  token_loss(problem.hidden, problem.weight, problem.targets).backward(at::ones({10}, at::kDouble));
  EXPECT_TRUE(at::equal(problem.hidden.grad(), grad));
}

TEST(TokenLoss, RefusesDoubleBackwardAndTargetsOutOfRange) {
  const Problem problem(at::kDouble, 4, 7);
  const Tensor loss = token_loss(problem.hidden, problem.weight, problem.targets).sum();
  const Tensor first = torch::autograd::grad({loss}, {problem.hidden}, {}, {}, true)[0].sum();
  EXPECT_TRUE(testing::throws<c10::NotImplementedError>(
      [&] { torch::autograd::grad({first}, {problem.weight}); },
      {"token_loss", "no double backward"}));
  EXPECT_THROW(token_loss(problem.hidden, problem.weight, problem.targets.clone().fill_(7)),
               c10::Error);
}

}  // namespace
}  // namespace lighthouse::model
