#include "lighthouse/model/layers.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>
#include <vector>

#include "tests/model/support.h"
#include "tests/support/device.h"
#include "tests/support/throws.h"

namespace lighthouse::model {
namespace {

using at::Tensor;
using testing::device;
using testing::max_difference;

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

/// Rows of a sequence of 64 tokens: one that begins in its middle, two chunks of it as a rank of
/// context parallelism holds them, and two documents.
Tensor some_positions() {
  const auto range = [](int64_t from) { return at::arange(from, from + 8, at::kLong); };
  const auto row = [&](int64_t first, int64_t second) {
    return at::cat({range(first), range(second)});
  };
  return at::stack({row(20, 28), row(8, 48), row(0, 0)}).to(device());
}

TEST(Rotation, OfPositionsIsThatOfASequenceThatHasThem) {
  const Tensor positions = some_positions();
  for (const RopeType type :
       {RopeType::kDefault, RopeType::kLinear, RopeType::kYarn, RopeType::kLlama3}) {
    const RopeScaling scaling{.type = type, .factor = 4, .original_context = 32};
    const auto options = at::TensorOptions(device());
    const Rotation whole(16, 500, at::empty({1, 64, 0}, options), scaling);
    const Rotation part(16, 500, at::empty({3, 16, 0}, options), scaling, positions);
    ASSERT_EQ(part.cos.sizes(), (std::vector<int64_t>{3, 16, 8}));
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_TRUE(at::equal(part.cos[row], whole.cos.index_select(0, positions[row])));
      EXPECT_TRUE(at::equal(part.sin[row], whole.sin.index_select(0, positions[row])));
    }
  }
  const RopeScaling dynamic{.type = RopeType::kDynamic};
  EXPECT_TRUE(testing::throws<std::invalid_argument>(
      [&] {
        Rotation(16, 500, at::empty({3, 16, 0}), dynamic, positions);
      },
      {"has positions", "rope_type is 'dynamic'"}));
}

TEST(Rotate, TurnsEachRowByItsPositions) {
  at::manual_seed(2);
  const Tensor positions = some_positions().t().contiguous().t();  // rows may be strided
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const int64_t dim : {6, 32}) {
      const Tensor x = at::randn({3, 64, 2, dim}, at::kDouble).to(type).to(device());
      std::vector<Tensor> rows;
      for (int64_t row = 0; row < 3; ++row) {
        rows.push_back(x[row].index_select(0, positions[row]));
      }
      const Tensor part = at::stack(rows);
      const Rotation whole(dim, 500, x), of_part(dim, 500, part, {}, positions);
      for (const bool inverse : {false, true}) {
        const Tensor turned = rotated(x, whole, inverse), found = rotated(part, of_part, inverse);
        for (int64_t row = 0; row < 3; ++row) {
          EXPECT_TRUE(at::equal(found[row], turned[row].index_select(0, positions[row])));
        }
      }
    }
  }
}

/// The frequencies of a rotation: the angles of position 1, from cosines and sines.
std::vector<double> frequencies(const Rotation& rotation) {
  const Tensor angles = at::atan2(rotation.sin[1], rotation.cos[1]).to(at::kDouble);
  return {angles.data_ptr<double>(), angles.data_ptr<double>() + angles.numel()};
}

constexpr int64_t kDim = 64;
constexpr double kTheta = 10000;

double unscaled(int64_t pair, double theta = kTheta) {
  return std::pow(theta, -2.0 * static_cast<double>(pair) / kDim);
}

std::vector<double> scaled(const RopeScaling& scaling, int64_t tokens = 2) {
  return frequencies(Rotation(kDim, kTheta, at::empty({1, tokens, 0}), scaling));
}

TEST(RopeScaling, IsTheFormulaOfItsType) {
  RopeScaling scaling{.type = RopeType::kLinear, .factor = 4, .original_context = 1000};
  for (int64_t i = 0; i < kDim / 2; ++i) EXPECT_NEAR(scaled(scaling)[i], unscaled(i) / 4, 1e-6);

  // Of turns over the original context: below 1 slow, above 4 fast, linear between.
  scaling.type = RopeType::kLlama3;
  for (int64_t i = 0; i < kDim / 2; ++i) {
    const double turns = unscaled(i) * 1000 / (2 * std::numbers::pi);
    const double fast = std::clamp((turns - 1) / (4 - 1), 0.0, 1.0);
    EXPECT_NEAR(scaled(scaling)[i], unscaled(i) * (fast + (1 - fast) / 4), 1e-6) << i;
  }

  // 32 turns and 1 are at these indices, which are no whole ones.
  const auto index = [](double turns) {
    return kDim * std::log(1000 / (2 * std::numbers::pi * turns)) / (2 * std::log(kTheta));
  };
  const auto expect_yarn = [&](double from, double to) {
    for (int64_t i = 0; i < kDim / 2; ++i) {
      const double slow = std::clamp((static_cast<double>(i) - from) / (to - from), 0.0, 1.0);
      EXPECT_NEAR(scaled(scaling)[i], unscaled(i) * (1 - slow + slow / 4), 1e-6) << i;
    }
  };
  scaling.type = RopeType::kYarn;
  expect_yarn(std::floor(index(32)), std::ceil(index(1)));
  scaling.truncate = false;
  expect_yarn(index(32), index(1));
}

TEST(RopeScaling, OfYarnMultipliesCosinesAndSines) {
  RopeScaling scaling{.type = RopeType::kYarn, .factor = 4};
  const auto amplitude = [&] {
    return Rotation(kDim, kTheta, at::empty({1, 2, 0}), scaling).cos[0][0].item<double>();
  };
  EXPECT_NEAR(amplitude(), 1 + 0.1 * std::log(4.0), 1e-6);
  scaling.attention_factor = 0.5;
  EXPECT_EQ(amplitude(), 0.5);
  scaling.type = RopeType::kLlama3;
  EXPECT_EQ(amplitude(), 1);
}

TEST(RopeScaling, OfDynamicTypeDependsOnTheLengthBeyondTheOriginalContext) {
  const RopeScaling scaling{.type = RopeType::kDynamic, .factor = 4, .original_context = 100};
  for (int64_t i = 0; i < kDim / 2; ++i) {
    EXPECT_NEAR(scaled(scaling, 100)[i], unscaled(i), 1e-6) << i;
    const double theta = kTheta * std::pow(4 * 250 / 100 - 3, 64.0 / 62);
    EXPECT_NEAR(scaled(scaling, 250)[i], unscaled(i, theta), 1e-6) << i;
  }
}

/// The tensors of a layer's two blocks, that need gradients; its projections have a bias or none.
struct Layer {
  static constexpr int64_t kWidth = 8, kHidden = 12, kDim = 4;
  Tensor x, norm;
  Projection q, k, v, o, gate, up, down;

  explicit Layer(int64_t hidden = kHidden, bool biased = false) {
    at::manual_seed(3);
    x = draw({2, 5, kWidth});
    norm = draw({kWidth});
    q.weight = draw({4 * kDim, kWidth});
    k.weight = draw({2 * kDim, kWidth});
    v.weight = draw({2 * kDim, kWidth});
    o.weight = draw({kWidth, 4 * kDim});
    gate.weight = draw({hidden, kWidth});
    up.weight = draw({hidden, kWidth});
    down.weight = draw({kWidth, hidden});
    if (!biased) return;
    for (Projection* p : {&q, &k, &v, &o, &gate, &up, &down}) p->bias = draw({p->weight.size(0)});
  }
  static Tensor draw(at::IntArrayRef sizes) {
    return at::randn(sizes, at::kDouble).to(device()).requires_grad_();
  }
  Tensor plain_norm() const { return x / (x.square().mean(-1, true) + 0.01).sqrt() * norm; }
  Tensor plain_rotation(const Tensor& heads, const Rotation& rotation) const {
    const auto half = heads.chunk(2, -1);
    const Tensor cos = rotation.cos.unsqueeze(-2), sin = rotation.sin.unsqueeze(-2);
    return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1);
  }
};

/// Gradients of a weighted sum of the outputs, weights being the same in every call.
/// Tensors, and the weights and biases that there are.
std::vector<Tensor> all_of(std::vector<Tensor> tensors,
                           const std::vector<Projection>& projections) {
  for (const Projection& projection : projections) {
    tensors.push_back(projection.weight);
    if (projection.bias.defined()) tensors.push_back(projection.bias);
  }
  return tensors;
}

Tensor plain(const Tensor& x, const Projection& p) { return at::linear(x, p.weight, p.bias); }

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

class Blocks : public ::testing::TestWithParam<bool> {
 protected:
  bool biased() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Biases, Blocks, ::testing::Bool(),
                         [](const auto& biased) { return biased.param ? "Biased" : "Plain"; });

TEST_P(Blocks, ProjectHeadsIsItsPlainFormInValueAndGradient) {
  const Layer l(Layer::kHidden, biased());
  const Tensor positions = at::randint(0, 50, {2, 5}, at::kLong).to(device());
  for (const Rotation& rotation :
       {Rotation(Layer::kDim, 10000, l.x), Rotation(Layer::kDim, 10000, l.x, {}, positions)}) {
    const auto heads = project_heads(l.x, {l.norm, 0.01}, l.q, l.k, l.v, rotation, Layer::kDim);
    const auto plain_heads = [&](const Projection& projection) {
      return plain(l.plain_norm(), projection).unflatten(-1, {-1, Layer::kDim});
    };
    const std::vector<Tensor> expected{l.plain_rotation(plain_heads(l.q), rotation),
                                       l.plain_rotation(plain_heads(l.k), rotation),
                                       plain_heads(l.v)};
    const std::vector<Tensor> actual(heads.begin(), heads.end());
    expect_same(actual, expected);
    const std::vector<Tensor> of = all_of({l.x, l.norm}, {l.q, l.k, l.v});
    expect_same(gradients(actual, of), gradients(expected, of));
  }
}

TEST_P(Blocks, AddProjectedIsItsPlainFormInValueAndGradient) {
  const Layer l(Layer::kHidden, biased());
  const Tensor heads = Layer::draw({2, 5, 4, Layer::kDim});
  const std::vector<Tensor> actual{add_projected(l.x, heads, l.o)};
  const std::vector<Tensor> expected{l.x + plain(heads.flatten(2), l.o)};
  expect_same(actual, expected);
  const std::vector<Tensor> of = all_of({l.x, heads}, {l.o});
  expect_same(gradients(actual, of), gradients(expected, of));
}

/// Hidden widths that are and are not whole packs of 16 bytes.
TEST_P(Blocks, AddMlpIsItsPlainFormInValueAndGradient) {
  for (const int64_t hidden : {12, 13}) {
    const Layer l(hidden, biased());
    const std::vector<Tensor> actual{add_mlp(l.x, {l.norm, 0.01}, l.gate, l.up, l.down)};
    const Tensor gate = plain(l.plain_norm(), l.gate);
    const Tensor inner = gate * at::sigmoid(gate) * plain(l.plain_norm(), l.up);
    const std::vector<Tensor> expected{l.x + plain(inner, l.down)};
    expect_same(actual, expected);
    const std::vector<Tensor> of = all_of({l.x, l.norm}, {l.gate, l.up, l.down});
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
    for (Tensor* tensor : {&l.x, &l.norm, &l.gate.weight, &l.up.weight, &l.down.weight}) {
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
        {expected}, all_of({exact.x, exact.norm}, {exact.gate, exact.up, exact.down}), {weight});
    for (size_t i = 0; i < grads.size(); ++i) {
      EXPECT_LE(error(grads[i], exact_grads[i]), tolerance / 10) << i;
    }
  }
}

/// A gradient may be recorded, and only what depends on it refuses.
TEST_P(Blocks, RefuseDoubleBackward) {
  const Layer l(Layer::kHidden, biased());
  const Norm norm{l.norm, 0.01};
  const Rotation rotation(Layer::kDim, 10000, l.x);
  const auto gradient = [&](const Tensor& out) {
    // The square makes the gradient depend on the output.
    return torch::autograd::grad({out.square().sum()}, {l.x}, {}, {}, /*create_graph=*/true)[0];
  };
  const auto refuses = [&](const std::string& name, const Tensor& out) {
    const Tensor first = gradient(out).sum();
    for (const Tensor& input : {l.x, l.norm}) {
      EXPECT_TRUE(testing::throws<c10::NotImplementedError>(
          [&] { torch::autograd::grad({first}, {input}, {}, /*retain_graph=*/true); },
          {name, "no double backward"}))
          << name;
    }
  };
  refuses("rms_norm", rms_norm(l.x, l.norm, 0.01));
  refuses("project_heads", project_heads(l.x, norm, l.q, l.k, l.v, rotation, Layer::kDim)[0]);
  refuses("add_mlp", add_mlp(l.x, norm, l.gate, l.up, l.down));
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
