#include "lighthouse/ops/scorers.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include "lighthouse/ops/attention.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;

class Gla : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Gla,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

/// The norms of gated linear attention's outputs, token by token: method.md, section on scores.
/// q is (B, H, N, D), k and v have as many heads, gate is (B, H, N).
Array norms_by_loop(const Array& q, const Array& k, const Array& v, const Array& gate) {
  Array norms(gate.shape);
  const int64_t tokens = gate.size(2), dim = q.size(3);
  for (int64_t head = 0; head < gate.size(0) * gate.size(1); ++head) {
    std::vector<double> state(dim * dim);
    for (int64_t t = head * tokens; t < (head + 1) * tokens; ++t) {
      const double* row[] = {&q.values[t * dim], &k.values[t * dim], &v.values[t * dim]};
      const double decay = std::exp(gate.values[t]);
      double square = 0;
      for (int64_t j = 0; j < dim; ++j) {
        double out = 0;
        for (int64_t i = 0; i < dim; ++i) {
          double& s = state[i * dim + j];
          s = decay * s + row[1][i] * row[2][j];
          out += row[0][i] * s;
        }
        square += out * out;
      }
      norms.values[t] = std::sqrt(square / static_cast<double>(dim));
    }
  }
  return norms;
}

/// Both scores, with a key/value head for each query head, before the largest is taken.
oracle::Scores scores_by_loop(const oracle::Qkv& x, const Array& gate) {
  return {norms_by_loop(x.q, x.k, x.v, gate), norms_by_loop(x.k, x.q, x.v, gate)};
}

TEST_P(Gla, AgreesWithALoopOverTokens) {
  Random random(100);
  for (int i = 0; i < 12; ++i) {
    Case c;
    c.tokens = draw(random, 1, 300);  // of up to three chunks
    c.batch = draw(random, 1, 2);
    c.groups = draw(random, 1, 2);
    c.heads = c.groups * draw(random, 1, 2);
    c.dim = draw(random, 1, 20);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    Tensor gate = to_tensor(absolute(normals(random, {c.batch, c.heads, c.tokens}))).mul_(-0.1);
    const Tensor kind = at::rand_like(gate);
    gate.masked_fill_(kind.lt(0.1), 0);
    gate.masked_fill_(kind.gt(0.995), -kInfinity);
    const TokenScores ours = gla_scores(x.q, x.k, x.v, gate);

    const int64_t shared = c.heads / c.groups;
    const auto expand = [&](const Tensor& t) { return to_array(t.repeat_interleave(shared, 1)); };
    const oracle::Qkv arrays{to_array(x.q), expand(x.k), expand(x.v)};
    const oracle::Scores expected = scores_by_loop(arrays, to_array(gate));
    // A sum rounds once a term, of which a norm has N D; an exponent by its size, which is at most
    // that of the gates of a chunk; the first relative to the sum of absolute values.
    const oracle::Scores most = scores_by_loop(
        {absolute(arrays.q), absolute(arrays.k), absolute(arrays.v)}, to_array(gate));
    const double unit = accumulator(rounding(GetParam())).unit;
    const double exponents = gate.clamp_min(-64).sum(-1).abs().max().item<double>();
    const double share = 2 * (static_cast<double>(c.tokens + 2 * c.dim) + exponents) * unit;
    const auto expect_within = [&](const Tensor& actual, const Array& reference, Array budget) {
      for (double& value : budget.values) value = share * value + kFloat32.unit * value;
      EXPECT_TRUE(within(to_array(actual), reference, budget));
    };
    const auto largest = [&](const Array& array) {
      return to_array(to_tensor(array).unflatten(1, {c.groups, shared}).amax(2));
    };
    expect_within(ours.q, expected.q, most.q);
    expect_within(ours.k, largest(expected.k), largest(most.k));
  }
}

TEST_P(Gla, WithoutAGateTheStateHalves) {
  Random random(101);
  Case c;
  c.tokens = 200, c.heads = 2, c.dim = 8;
  const Tensors x = random_tensors(random, c, GetParam());
  const Tensor gate = at::full({1, 2, 200}, -std::log(2.0) / 5, at::kDouble).to(device());
  const TokenScores by_gate = gla_scores(x.q, x.k, x.v, gate);
  const TokenScores by_half_life = gla_scores(x.q, x.k, x.v, {}, 5);
  EXPECT_TRUE(by_half_life.q.equal(by_gate.q));
  EXPECT_TRUE(by_half_life.k.equal(by_gate.k));
  EXPECT_FALSE(gla_scores(x.q, x.k, x.v).q.equal(by_gate.q));
}

TEST(GlaScorer, IsASetting) {
  Random random(102);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    const Tensors x = random_tensors(random, c, at::kFloat);
    const Selection expected = select(x.q, x.k, x.v, c.config, gla_scores(x.q, x.k, x.v, {}, 3));
    c.config.scorer = Scorer::kGla;
    c.config.half_life = 3;
    EXPECT_TRUE(select(x.q, x.k, x.v, c.config).rows.equal(expected.rows));
  }
}

TEST(GlaScorer, RefusesGatesThatAreNone) {
  const Tensor q = at::randn({1, 4, 64, 8}), k = at::randn({1, 2, 64, 8});
  const auto with = [&](const Tensor& gate) { return [=] { gla_scores(q, k, k, gate); }; };
  const Tensor gate = at::zeros({1, 4, 64});
  EXPECT_NO_THROW(with(gate)());
  EXPECT_NO_THROW(with(gate.to(at::kHalf))());
  EXPECT_TRUE(throws<c10::ValueError>(with(gate.slice(1, 2)),
                                      {"gate has the shape [1, 2, 64]", "[1, 4, 64]"}));
  EXPECT_TRUE(throws<c10::TypeError>(with(gate.to(at::kInt)), {"gate is Int"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(gate.to(at::kMeta)), {"gate is on meta", "cpu"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(gate + 0.25), {"gate holds 0.25", "0 or less"}));
  EXPECT_TRUE(throws<c10::ValueError>(with(gate * kNan), {"gate holds", "nan"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { gla_scores(q, k, k, {}, 0); }, {"half_life is 0"}));
}

TEST(NormScorer, IsTheFusedOne) {
  Random random(103);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_case(random);
    const Tensors x = random_tensors(random, c, at::kDouble);
    EXPECT_TRUE(select(x.q, x.k, x.v, c.config, norm_scores(x.q, x.k))
                    .rows.equal(select(x.q, x.k, x.v, c.config).rows));
  }
}

}  // namespace
}  // namespace lighthouse::testing
