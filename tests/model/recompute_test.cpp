#include "lighthouse/model/recompute.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace lighthouse::model {
namespace {

using at::Tensor;

TEST(Recomputed, KeepsNothingButItsInputAndIsDifferentiableOnce) {
  const Tensor x = at::randn({3}).requires_grad_(), weight = at::randn({3}).requires_grad_();
  int calls = 0;
  const auto layer = [&](const Tensor& of) {
    ++calls;
    return of.square() * weight;
  };
  const Tensor out = recomputed(layer, x);
  EXPECT_EQ(calls, 1);
  out.sum().backward();
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(at::equal(x.grad(), 2 * x * weight));
  EXPECT_TRUE(at::equal(weight.grad(), x.square()));
  EXPECT_THROW(torch::autograd::grad({recomputed(layer, x).sum()}, {x}, {}, {}, true), c10::Error);
}

}  // namespace
}  // namespace lighthouse::model
