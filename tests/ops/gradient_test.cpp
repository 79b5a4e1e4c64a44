#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;
using torch::autograd::grad;

/// Every partial derivative, against central differences in float64 with the selection fixed.
TEST(Gradient, IsThatOfFiniteDifferences) {
  // The differences err by step^2 (times third derivatives of a few units) and by rounding / step.
  constexpr double kStep = 1e-5;
  constexpr double kTolerance = 1e-8;
  const Threads one(1);  // to wake others for so little would cost the most time
  Random random(70);
  for (int i = 0; i < 8; ++i) {
    Case c = random_case(random);
    c.tokens = std::clamp<int64_t>(c.tokens, 2, 20);
    c.config.budget = c.config.tile_budget;
    c.dim = std::min<int64_t>(c.dim, 3);
    if (i % 2 == 0) c.config.local = draw(random, 1, 25);
    if (i % 4 == 0) c.config.local_shift = draw(random, 0, c.config.local - 1);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = leaves(random_tensors(random, c, at::kDouble));
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()));
    const auto value = [&] {
      return attention(x.q, x.k, x.v, c.config, selection).mul(grad_out).sum();
    };
    const auto grads = grad({value()}, {x.q, x.k, x.v});
    size_t which = 0;
    for (const Tensor* input : {&x.q, &x.k, &x.v}) {
      const at::NoGradGuard no_grad;
      const Array analytic = to_array(grads[which++]);
      Array numeric(analytic.shape);
      for (int64_t b = 0, n = 0; b < input->size(0); ++b)
        for (int64_t h = 0; h < input->size(1); ++h)
          for (int64_t t = 0; t < input->size(2); ++t)
            for (int64_t d = 0; d < input->size(3); ++d, ++n) {
              const Tensor element = input->detach()[b][h][t][d];
              const double original = element.item<double>();
              element.fill_(original + kStep);
              const double above = value().item<double>();
              element.fill_(original - kStep);
              const double below = value().item<double>();
              element.fill_(original);
              numeric.values[n] = (above - below) / (2 * kStep);
            }
      EXPECT_TRUE(close(analytic, numeric, kTolerance)) << "input " << which;
    }
  }
}

TEST(Gradient, OnlyOfWhatNeedsIt) {
  Random random(71);
  const Case c = random_case(random);
  const Tensors x = random_tensors(random, c, at::kFloat);
  EXPECT_FALSE(attention(x.q, x.k, x.v, c.config).requires_grad());
  const Tensor v = x.v.detach().requires_grad_();
  attention(x.q, x.k, v, c.config).sum().backward();
  const Tensors all = leaves(x);
  attention(all.q, all.k, all.v, c.config).sum().backward();
  EXPECT_TRUE(v.grad().equal(all.v.grad()));
}

TEST(Gradient, SelectionHasNone) {
  Random random(72);
  const Case c = random_case(random);
  const Tensors x = leaves(random_tensors(random, c, at::kFloat));
  const Selection selection = select(x.q, x.k, x.v, c.config);
  EXPECT_FALSE(selection.rows.requires_grad());
  EXPECT_FALSE(selection.slots.requires_grad());
  const std::vector<int64_t> geometry = ops::geometry_list(c.tokens, c.config);
  EXPECT_FALSE(std::get<0>(ops::score(x.q, x.k, x.v, geometry)).requires_grad());
}

TEST(Gradient, DoubleBackwardSaysThatItIsNotThere) {
  Random random(73);
  Case c = random_case(random);
  c.config.levels = 3;
  c.config.pooling_factor = 2;
  c.config.budget = c.config.tile_budget = 2;
  const Tensors x = leaves(random_tensors(random, c, at::kDouble));
  const auto twice = [&](const Tensor& out, const Tensor& input) {
    return [=] {
      // The square makes the gradient depend on the output.
      const Tensor first = grad({out.square().sum()}, {input}, {}, {}, /*create_graph=*/true)[0];
      grad({first.sum()}, {input});
    };
  };
  EXPECT_TRUE(throws<c10::NotImplementedError>(twice(attention(x.q, x.k, x.v, c.config), x.q),
                                               {"lighthouse::", "double backward"}));

  const std::vector<int64_t> geometry = ops::geometry_list(c.tokens, c.config);
  const Selection maps = select(x.q, x.k, x.v, c.config);
  const Tensor roots = std::get<2>(ops::score(x.q, x.k, x.v, geometry));
  const Tensor gathered =
      std::get<0>(ops::gather(x.q, x.k, x.v, roots, maps.rows, maps.slots, geometry));
  EXPECT_TRUE(throws<c10::NotImplementedError>(twice(gathered, x.q),
                                               {"lighthouse::gather", "double backward"}));
  const Tensor rows = gathered.detach().requires_grad_();
  EXPECT_TRUE(throws<c10::NotImplementedError>(
      twice(ops::scatter(rows, maps.rows, maps.slots, geometry), rows),
      {"lighthouse::scatter", "double backward"}));
}

}  // namespace
}  // namespace lighthouse::testing
