#include "lighthouse/ops/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cmath>

#include "lighthouse/core/geometry.h"
#include "lighthouse/ops/tensor.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradients.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;

class Attention : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Attention,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

struct PlainResults {
  Results results;
  /// The largest sum over a gathered row of |grad_out out|. Stock attention subtracts that row sum,
  /// of an `out` that is rounded, from the gradients of the row's weights.
  double row_sum;
};

/// The same by plain PyTorch code in the inputs' type: products with the dense matrices of pooling
/// and of scatter, which the oracle gives, around stock attention.
PlainResults run_plainly(const Tensors& inputs, const Tensor& grad_out, const Array& rows,
                         const Config& config) {
  const int64_t batch = inputs.q.size(0);
  const int64_t heads = inputs.q.size(1);
  const int64_t groups = inputs.k.size(1);
  const int64_t tokens = inputs.q.size(2);
  const int64_t length = rows.size(2);
  const auto identity = [&](int64_t size) {
    return to_array(at::eye(size, at::kDouble).expand({batch, groups, size, size}));
  };
  const at::ScalarType type = inputs.q.scalar_type();
  const Tensor pooling = to_tensor(oracle::gather(identity(tokens), rows, config), type);
  const Tensor scattering =
      to_tensor(oracle::scatter(identity(length), rows, tokens, config), type);
  const auto each_head = [&](const Tensor& matrix) {
    return matrix.repeat_interleave(heads / groups, 1);
  };
  Tensor gathered_out;
  const auto plain = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    gathered_out = at::scaled_dot_product_attention(each_head(pooling).matmul(q), pooling.matmul(k),
                                                    pooling.matmul(v), {}, 0.0, true, config.scale,
                                                    heads != groups);
    return each_head(scattering).matmul(gathered_out);
  };
  const Results results = run_by(inputs, grad_out, plain);
  const Tensor gathered_grad = each_head(scattering).transpose(2, 3).matmul(grad_out);
  const Tensor row_sums =
      gathered_grad.mul(gathered_out.detach()).abs().sum(-1, false, at::kDouble);
  return {results, row_sums.max().item<double>()};
}

double largest(const Tensor& tensor) { return tensor.abs().max().item<double>(); }

/// Holds a run to the oracle. The budget: four times the error, against float64, of plain code in
/// the same type on the same inputs (which rounds as often as ours, if elsewhere: once for a
/// gathered row, a weight, an output row and a sum), and a unit for each of the L terms of the
/// sums, whose order is ours. Gradients of q and k are differences, which may all be 0: a unit, for
/// each of those terms, of what is subtracted.
void expect_within_budget(const Results& ours, const Tensors& x, const Tensor& grad_out,
                          const Selection& selection, const Config& config) {
  const Array rows = to_array(selection.rows);
  const oracle::Qkv arrays = to_arrays(x);
  const Array out = oracle::attention(arrays, rows, config);
  const oracle::Qkv grad = oracle::attention_adjoint(arrays, to_array(grad_out), rows, config);
  const PlainResults plain = run_plainly(x, grad_out, rows, config);
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(x.q.size(3))));
  const double subtracted[] = {0, scale * plain.row_sum * largest(x.k),
                               scale * plain.row_sum * largest(x.q), 0};
  const Array* expected[] = {&out, &grad.q, &grad.k, &grad.v};
  for (size_t i = 0; i < 4; ++i) {
    const Tensor reference = to_tensor(*expected[i]);
    const double unit = static_cast<double>(config.levels + 1) * rounding(x.q.scalar_type()).unit;
    const double budget = 4 * largest(plain.results.all()[i] - reference) +
                          unit * (largest(reference) + subtracted[i]);
    EXPECT_TRUE(within(to_array(ours.all()[i]), *expected[i], Array(expected[i]->shape, budget)))
        << kNames[i];
  }
}

TEST_P(Attention, AgreesWithTheOracle) {
  Random random(60);
  for (int i = 0; i < 40; ++i) {
    Case c = random_case(random);
    if (draw(random, 0, 2) == 0) c.config.scale = 0.4;
    c.config.scorer = static_cast<Scorer>(draw(random, 0, 2));
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    if (draw(random, 0, 1)) grad_out = tokens_major(grad_out);
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const Results ours = run(x, grad_out, c.config);
    expect_within_budget(ours, x, grad_out, selection, c.config);
    expect_same_bits(run(x, grad_out, c.config, selection), ours);
  }
}

/// Scores that the caller brings decide as a scorer's do, whatever the scorer is.
TEST(AttentionGiven, ScoresAreTakenInPlaceOfAScorers) {
  Random random(69);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, at::kDouble);
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()));
    const Results by_norm = run(x, grad_out, c.config);
    const TokenScores norms = norm_scores(x.q, x.k);
    c.config.scorer = Scorer::kDilated;
    expect_same_bits(run(x, grad_out, c.config, norms), by_norm);
    const TokenScores others{to_tensor(normals(random, {c.batch, c.heads, c.tokens}), at::kFloat),
                             to_tensor(normals(random, {c.batch, c.groups, c.tokens}), at::kFloat)};
    expect_same_bits(run(x, grad_out, c.config, others),
                     run(x, grad_out, c.config, select(x.q, x.k, x.v, c.config, others)));
  }
}

/// With the kernels that stock attention takes by itself.
TEST_P(Attention, AgreesWithTheOracleAtCommonHeadDimensions) {
  const AttentionKernels kernels;
  Random random(68);
  for (const int64_t dim : {64, 96, 128, 256})
    for (const int64_t groups : {1, 2}) {
      Case c;
      c.config.budget = c.config.tile_budget = 4;
      c.tokens = 201;
      c.heads = 2;
      c.groups = groups;
      c.dim = dim;
      SCOPED_TRACE(::testing::PrintToString(c));
      const Tensors x = random_tensors(random, c, GetParam());
      const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
      const Selection selection = select(x.q, x.k, x.v, c.config);
      expect_within_budget(run(x, grad_out, c.config), x, grad_out, selection, c.config);
    }
}

TEST_P(Attention, LayoutsDoNotChangeABit) {
  Random random(61);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    c.dim = 8;  // stock attention's order of sums may follow the layout where D is odd
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors any = random_tensors(random, c, GetParam());
    const Tensors x{any.q.contiguous(), any.k.contiguous(), any.v.contiguous()};
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Results expected = run(x, grad_out, c.config);
    const auto last_strided = [](const Tensor& t) {
      return t.transpose(2, 3).contiguous().transpose(2, 3);
    };
    expect_same_bits(run({tokens_major(x.q), tokens_major(x.k), tokens_major(x.v)},
                         tokens_major(grad_out), c.config),
                     expected);
    expect_same_bits(run({last_strided(x.q), last_strided(x.k), last_strided(x.v)},
                         last_strided(grad_out), c.config),
                     expected);
  }
}

TEST_P(Attention, TakesExpandedGradients) {
  Random random(62);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor ones = at::ones({}, x.q.options()).expand(x.q.sizes());
    const Results expected = run(x, ones.contiguous(), c.config);
    expect_same_bits(run(x, ones, c.config), expected);
    const Tensors leaf = leaves(x);
    attention(leaf.q, leaf.k, leaf.v, c.config).sum().backward();
    EXPECT_TRUE(leaf.q.grad().equal(expected.grad_q));
    EXPECT_TRUE(leaf.k.grad().equal(expected.grad_k));
    EXPECT_TRUE(leaf.v.grad().equal(expected.grad_v));
  }
}

TEST_P(Attention, KeepsTheTypeAndStoresTokensFirst) {
  Random random(63);
  for (int i = 0; i < 10; ++i) {
    const Case c = random_case(random);
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor out = attention(x.q, x.k, x.v, c.config);
    EXPECT_EQ(out.scalar_type(), GetParam());
    EXPECT_EQ(out.sizes(), x.q.sizes());
    EXPECT_TRUE(out.transpose(1, 2).is_contiguous());
  }
}

TEST(AttentionInputs, StridedRowsAreNotCopied) {
  const Tensor rows = at::randn({2, 30, 3, 8}).transpose(1, 2);
  EXPECT_EQ(ops::with_contiguous_rows(rows).const_data_ptr(), rows.const_data_ptr());
  const Tensor slice = at::randn({2, 3, 30, 8}).slice(2, 1, 30, 2);
  EXPECT_EQ(ops::with_contiguous_rows(slice).const_data_ptr(), slice.const_data_ptr());
  const Tensor columns = rows.transpose(2, 3);
  EXPECT_EQ(ops::with_contiguous_rows(columns).stride(-1), 1);
  EXPECT_TRUE(ops::with_contiguous_rows(columns).equal(columns));
}

/// A selection is frozen; all tokens from t on change; the rows before t stay, to the bit.
TEST_P(Attention, OutputsDoNotDependOnTheFuture) {
  Random random(64);
  int changed = 0;
  for (int i = 0; i < 40; ++i) {
    Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const int64_t t = draw(random, 0, c.tokens - 1);
    const Tensors moved{x.q.clone(), x.k.clone(), x.v.clone()};
    for (const Tensor* tensor : {&moved.q, &moved.k, &moved.v}) {
      Tensor future = tensor->slice(2, t, c.tokens);
      future.copy_(at::randn(future.sizes(), future.options()) * 10);
    }
    const Tensor before = attention(x.q, x.k, x.v, c.config, selection);
    const Tensor after = attention(moved.q, moved.k, moved.v, c.config, selection);
    EXPECT_TRUE(after.slice(2, 0, t).equal(before.slice(2, 0, t))) << "t " << t;
    changed += !after.equal(before);

    // Nor do gradients flow from an output to later tokens.
    const Tensors leaf = leaves(x);
    attention(leaf.q, leaf.k, leaf.v, c.config, selection).slice(2, 0, t).sum().backward();
    for (const Tensor* tensor : {&leaf.q, &leaf.k, &leaf.v}) {
      EXPECT_EQ(tensor->grad().slice(2, t, c.tokens).count_nonzero().item<int64_t>(), 0);
    }
  }
  EXPECT_GT(changed, 20) << "the test must be able to see a change";
}

/// With ones for v every row that attention gives is 1, and an output counts the entries that it
/// hears from: one at least.
TEST(AttentionCoverage, EveryPositionOfEveryHeadHearsFromAnEntry) {
  Random random(65);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, at::kDouble);
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const Tensor out = attention(x.q, x.k, at::ones_like(x.v), c.config, selection);
    const Array rows = to_array(selection.rows);
    const Array one_each({c.batch, c.heads, rows.size(2), c.dim}, 1);
    const Array heard = oracle::scatter(one_each, rows, c.tokens, c.config);
    EXPECT_GE(*std::min_element(heard.values.begin(), heard.values.end()), 1);
    EXPECT_TRUE(close(to_array(out), heard, 1e-13));
  }
}

TEST(AttentionRows, AreThoseOfTheGeometry) {
  Random random(66);
  for (int i = 0; i < 50; ++i) {
    const Case c = random_case(random);
    EXPECT_EQ(gathered_rows(c.tokens, c.config), oracle::length(c.tokens, c.config));
  }
}

TEST(AttentionDense, IsCausalAndTakesGroupedQueries) {
  Random random(67);
  Case c;
  c.tokens = 40;
  c.heads = 4;
  c.groups = 2;
  c.dim = 8;
  const Tensors x = random_tensors(random, c, at::kDouble);
  EXPECT_TRUE(close(to_array(dense_attention(x.q, x.k, x.v, 0.3)),
                    oracle::attend(to_arrays(x), 0.3).out, 1e-14));
  EXPECT_TRUE(close(to_array(dense_attention(x.q, x.k, x.v)),
                    oracle::attend(to_arrays(x), 1 / std::sqrt(8.0)).out, 1e-14));
}

TEST(AttentionBatch, MayBeEmpty) {
  const Tensor q = at::randn({0, 2, 30, 4}, device());
  Config config;
  config.budget = config.tile_budget = 1;
  EXPECT_EQ(attention(q, q, q, config).sizes(), q.sizes());
}

}  // namespace
}  // namespace lighthouse::testing
