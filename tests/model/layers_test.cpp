#include "lighthouse/model/layers.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "tests/support/device.h"

namespace lighthouse::model {
namespace {

using at::Tensor;

double max_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  return (a - b).abs().max().item<double>();
}

using testing::device;

Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).requires_grad_(); }

Tensor rotated(const Tensor& x, const Rotation& rotation, bool inverse = false) {
  Tensor out = at::empty_like(x);
  rotate_out(x, rotation, inverse, out);
  return out;
}

TEST(Rotate, TurnsPairsOfHalvesByTheirAngles) {
  at::manual_seed(1);
  const int64_t tokens = 40, heads = 3, dim = 8;
  const double theta = 500;
  const Tensor x = at::randn({2, tokens, heads, dim}, at::kDouble);
  const Tensor turned = rotated(x.to(device()), Rotation(dim, theta, x.to(device()))).cpu();
  Tensor expected = at::empty_like(x);
  const auto in = x.accessor<double, 4>();
  auto out = expected.accessor<double, 4>();
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < dim / 2; ++i) {
          const double angle = static_cast<double>(t) * std::pow(theta, -2.0 * i / dim);
          const std::complex<double> pair(in[b][t][h][i], in[b][t][h][i + dim / 2]);
          const std::complex<double> rotation = pair * std::polar(1.0, angle);
          out[b][t][h][i] = rotation.real();
          out[b][t][h][i + dim / 2] = rotation.imag();
        }
      }
    }
  }
  // Angles are float32: of up to 40 radians, so within 40 * 2^-24 and a few roundings more.
  EXPECT_LE(max_difference(turned, expected), 2e-5);
}

/// Types, and widths of a half that are and are not whole packs of 16 bytes.
TEST(Rotate, IsTheSameForEveryTypeAndLayout) {
  at::manual_seed(2);
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t dim : {6, 32}) {
      const Tensor all = at::randn({2, 9, 5, dim}, at::kDouble).to(type).to(device());
      const Tensor x = all.narrow(2, 1, 3);
      const Rotation exact(dim, 100, x.to(at::kDouble));
      const Tensor expected = rotated(x.to(at::kDouble), exact);
      const Rotation rotation(dim, 100, x);
      const Tensor turned = rotated(x, rotation);
      const double rounding = type == at::kDouble  ? 1e-15
                              : type == at::kFloat ? 1e-6
                              : type == at::kHalf  ? 0x1p-10
                                                   : 0x1p-7;
      EXPECT_LE(max_difference(turned.to(at::kDouble), expected), 4 * rounding) << type;
      Tensor in_place = all.clone();
      Tensor part = in_place.narrow(2, 1, 3);
      rotate_out(part, rotation, /*inverse=*/false, part);
      EXPECT_TRUE(at::equal(part, turned));
      EXPECT_TRUE(at::equal(in_place.select(2, 0), all.select(2, 0)));
      EXPECT_TRUE(at::equal(in_place.select(2, 4), all.select(2, 4)));
      // A rotation is orthogonal: its adjoint undoes it, but for the rounding of float32's angles.
      EXPECT_LE(max_difference(rotated(turned, rotation, /*inverse=*/true), x),
                8 * std::max(rounding, 0x1p-23));
    }
  }
}

TEST(Rotation, CoversWhatItWasMadeFor) {
  const Tensor x = at::empty({1, 10, 4});
  const Rotation rotation(4, 10000, x);
  EXPECT_FALSE(Rotation().fits(x));
  EXPECT_TRUE(rotation.fits(x));
  EXPECT_TRUE(rotation.fits(x.to(at::kBFloat16)));
  EXPECT_TRUE(rotation.fits(x.narrow(1, 0, 9)));
  EXPECT_FALSE(rotation.fits(at::empty({1, 11, 4})));
  EXPECT_FALSE(rotation.fits(x.to(at::kDouble)));
  EXPECT_TRUE(at::equal(rotation.first(3).cos, Rotation(4, 10000, x.narrow(1, 0, 3)).cos));
}

/// The tensors of a layer's two blocks, that need gradients.
struct Layer {
  static constexpr int64_t kWidth = 8, kHidden = 12, kDim = 4;
  Tensor x, norm, q, k, v, o, gate, up, down;

  explicit Layer(int64_t hidden = kHidden) {
    at::manual_seed(3);
    x = draw({2, 5, kWidth});
    norm = draw({kWidth});
    q = draw({4 * kDim, kWidth});
    k = draw({2 * kDim, kWidth});
    v = draw({2 * kDim, kWidth});
    o = draw({kWidth, 4 * kDim});
    gate = draw({hidden, kWidth});
    up = draw({hidden, kWidth});
    down = draw({kWidth, hidden});
  }
  static Tensor draw(at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).to(device()).requires_grad_();
  }
  std::vector<Tensor> all() const { return {x, norm, q, k, v, o, gate, up, down}; }

  Tensor plain_norm() const { return x / (x.square().mean(-1, true) + 0.01).sqrt() * norm; }
  Tensor plain_rotation(const Tensor& heads, const Rotation& rotation) const {
    const auto half = heads.chunk(2, -1);
    const Tensor cos = rotation.cos.unsqueeze(1), sin = rotation.sin.unsqueeze(1);
    return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1);
  }
};

/// Gradients of a weighted sum of the outputs, weights being the same in every call.
std::vector<Tensor> gradients(const std::vector<Tensor>& outputs, const std::vector<Tensor>& of) {
  at::manual_seed(4);
  std::vector<Tensor> weights;
  weights.reserve(outputs.size());
  for (const Tensor& out : outputs)
    weights.push_back(at::randn(out.sizes(), at::kDouble).to(device()));
  return torch::autograd::grad(outputs, of, weights);
}

void expect_same(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_LE(max_difference(actual[i], expected[i]), 1e-12) << i;
  }
}

TEST(ProjectHeads, IsItsPlainFormInValueAndGradient) {
  const Layer l;
  const Rotation rotation(Layer::kDim, 10000, l.x);
  const auto heads = project_heads(l.x, {l.norm, 0.01}, l.q, l.k, l.v, rotation, Layer::kDim);
  const auto plain = [&](const Tensor& weight) {
    return at::linear(l.plain_norm(), weight).unflatten(-1, {-1, Layer::kDim});
  };
  const std::vector<Tensor> expected{l.plain_rotation(plain(l.q), rotation),
                                     l.plain_rotation(plain(l.k), rotation), plain(l.v)};
  const std::vector<Tensor> actual(heads.begin(), heads.end());
  expect_same(actual, expected);
  const std::vector<Tensor> of{l.x, l.norm, l.q, l.k, l.v};
  expect_same(gradients(actual, of), gradients(expected, of));
}

TEST(AddProjected, IsItsPlainFormInValueAndGradient) {
  const Layer l;
  const Tensor heads = Layer::draw({2, 5, 4, Layer::kDim});
  const std::vector<Tensor> actual{add_projected(l.x, heads, l.o)};
  const std::vector<Tensor> expected{l.x + at::linear(heads.flatten(2), l.o)};
  expect_same(actual, expected);
  expect_same(gradients(actual, {l.x, heads, l.o}), gradients(expected, {l.x, heads, l.o}));
}

/// Hidden widths that are and are not whole packs of 16 bytes.
TEST(AddMlp, IsItsPlainFormInValueAndGradient) {
  for (const int64_t hidden : {12, 13}) {
    const Layer l(hidden);
    const std::vector<Tensor> actual{add_mlp(l.x, {l.norm, 0.01}, l.gate, l.up, l.down)};
    const Tensor gate = at::linear(l.plain_norm(), l.gate);
    const Tensor inner = gate * at::sigmoid(gate) * at::linear(l.plain_norm(), l.up);
    const std::vector<Tensor> expected{l.x + at::linear(inner, l.down)};
    expect_same(actual, expected);
    const std::vector<Tensor> of{l.x, l.norm, l.gate, l.up, l.down};
    const auto grads = gradients(actual, of);
    expect_same(grads, gradients(expected, of));

    const std::vector<Tensor> again{add_mlp(l.x, {l.norm, 0.01}, l.gate, l.up, l.down, true)};
    EXPECT_TRUE(at::equal(again[0], actual[0]));
    const auto again_grads = gradients(again, of);
    for (size_t i = 0; i < of.size(); ++i) EXPECT_TRUE(at::equal(again_grads[i], grads[i])) << i;
  }
}

TEST(AddMlp, IsCloseInTheOtherTypes) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Layer exact;
    Layer l;
    std::vector<Tensor> of;
    for (Tensor* tensor : {&l.x, &l.norm, &l.gate, &l.up, &l.down}) {
      *tensor = tensor->detach().to(type).requires_grad_();
      of.push_back(*tensor);
    }
    const Tensor out = add_mlp(l.x, {l.norm, 0.01}, l.gate, l.up, l.down);
    const Tensor expected = add_mlp(exact.x, {exact.norm, 0.01}, exact.gate, exact.up, exact.down);
    // Some roundings of values that are up to ten times those they sum to.
    const double tolerance = type == at::kFloat ? 1e-5 : 0.2;
    const auto error = [](const Tensor& a, const Tensor& b) {
      return ((a.to(at::kDouble) - b).norm() / b.norm()).item<double>();
    };
    EXPECT_LE(error(out.detach(), expected.detach()), tolerance / 10);
    at::manual_seed(5);
    const Tensor weight = at::randn(out.sizes(), at::kDouble).to(device());
    const auto grads = torch::autograd::grad({out}, of, {weight.to(type)});
    const auto exact_grads = torch::autograd::grad(
        {expected}, {exact.x, exact.norm, exact.gate, exact.up, exact.down}, {weight});
    for (size_t i = 0; i < grads.size(); ++i) {
      EXPECT_LE(error(grads[i], exact_grads[i]), tolerance / 10) << i;
    }
  }
}

TEST(Blocks, RefuseDoubleBackward) {
  const Layer l;
  const Rotation rotation(Layer::kDim, 10000, l.x);
  const auto twice = [&](const Tensor& out) {
    torch::autograd::grad({out.sum()}, {l.x}, {}, std::nullopt, /*create_graph=*/true);
  };
  EXPECT_THROW(twice(add_mlp(l.x, {l.norm, 0.01}, l.gate, l.up, l.down)), c10::NotImplementedError);
  EXPECT_THROW(twice(project_heads(l.x, {l.norm, 0.01}, l.q, l.k, l.v, rotation, Layer::kDim)[0]),
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
