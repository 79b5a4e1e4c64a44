#include "lighthouse/model/layers.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <complex>

namespace lighthouse::model {
namespace {

using at::Tensor;

double max_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  return (a - b).abs().max().item<double>();
}

Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).requires_grad_(); }

TEST(Rotate, TurnsPairsOfHalvesByTheirAngles) {
  at::manual_seed(1);
  const int64_t tokens = 40, heads = 3, dim = 8;
  const double theta = 500;
  const Tensor x = random({2, tokens, heads, dim}).detach();
  const Tensor rotated = rotate(x, Rotation(dim, theta, x));
  Tensor expected = at::empty_like(x);
  const auto in = x.accessor<double, 4>();
  auto out = expected.accessor<double, 4>();
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < dim / 2; ++i) {
          const double angle = static_cast<double>(t) * std::pow(theta, -2.0 * i / dim);
          const std::complex<double> pair(in[b][t][h][i], in[b][t][h][i + dim / 2]);
          const std::complex<double> turned = pair * std::polar(1.0, angle);
          out[b][t][h][i] = turned.real();
          out[b][t][h][i + dim / 2] = turned.imag();
        }
      }
    }
  }
  // Angles are float32: of up to 40 radians, so within 40 * 2^-24 and a few roundings more.
  EXPECT_LE(max_difference(rotated, expected), 2e-5);
}

TEST(Rotate, BackwardIsItsAdjoint) {
  at::manual_seed(2);
  const Tensor x = random({1, 7, 2, 6});
  const Rotation rotation(6, 10000, x);
  const Tensor rotated = rotate(x, rotation);
  const Tensor grad = at::randn_like(rotated).expand_as(rotated);
  rotated.backward(grad);
  // A rotation is orthogonal: its adjoint undoes it.
  EXPECT_LE(max_difference(rotate(x.grad(), rotation).detach(), grad), 1e-6);
  EXPECT_GT(max_difference(x.grad(), grad), 0.1);
}

TEST(Rotation, CoversWhatItWasMadeFor) {
  const Tensor x = at::empty({1, 10, 4});
  const Rotation rotation(4, 10000, x);
  EXPECT_FALSE(Rotation().fits(x));
  EXPECT_TRUE(rotation.fits(x));
  EXPECT_TRUE(rotation.fits(x.narrow(1, 0, 9)));
  EXPECT_FALSE(rotation.fits(at::empty({1, 11, 4})));
  EXPECT_FALSE(rotation.fits(x.to(at::kDouble)));
  EXPECT_TRUE(at::equal(rotation.first(3).cos, Rotation(4, 10000, x.narrow(1, 0, 3)).cos));
}

TEST(Swiglu, IsItsPlainFormInValueAndGradient) {
  at::manual_seed(3);
  const Tensor gate = random({2, 5, 9}), up = random({2, 5, 9});
  const Tensor weight = at::randn({2, 5, 9}, at::kDouble);
  (swiglu(gate, up) * weight).sum().backward();
  const Tensor plain_gate = gate.detach().clone().requires_grad_();
  const Tensor plain_up = up.detach().clone().requires_grad_();
  const Tensor plain = plain_gate * at::sigmoid(plain_gate) * plain_up;
  (plain * weight).sum().backward();
  EXPECT_LE(max_difference(swiglu(gate, up).detach(), plain.detach()), 1e-14);
  EXPECT_LE(max_difference(gate.grad(), plain_gate.grad()), 1e-14);
  EXPECT_LE(max_difference(up.grad(), plain_up.grad()), 1e-14);
}

TEST(Swiglu, RefusesDoubleBackward) {
  const Tensor gate = random({3}), up = random({3});
  EXPECT_THROW(torch::autograd::grad({swiglu(gate, up).sum()}, {gate}, {}, std::nullopt, true),
               c10::NotImplementedError);
}

TEST(RmsNorm, IsItsPlainFormInValueAndGradient) {
  at::manual_seed(4);
  const Tensor x = random({2, 5, 9}), weight = random({9});
  const Tensor grad = at::randn({2, 5, 9}, at::kDouble);
  rms_norm(x, weight, 0.01).backward(grad);
  const Tensor plain_x = x.detach().clone().requires_grad_();
  const Tensor plain_weight = weight.detach().clone().requires_grad_();
  const Tensor plain = plain_x / (plain_x.square().mean(-1, true) + 0.01).sqrt() * plain_weight;
  plain.backward(grad);
  EXPECT_LE(max_difference(rms_norm(x, weight, 0.01).detach(), plain.detach()), 1e-13);
  EXPECT_LE(max_difference(x.grad(), plain_x.grad()), 1e-13);
  EXPECT_LE(max_difference(weight.grad(), plain_weight.grad()), 1e-13);
}

TEST(RmsNorm, TakesItsWeightInTheTypeOfItsInput) {
  const Tensor x = at::randn({4, 8}).to(at::kBFloat16);
  EXPECT_EQ(rms_norm(x, at::ones({8}), 1e-5).scalar_type(), at::kBFloat16);
}

}  // namespace
}  // namespace lighthouse::model
