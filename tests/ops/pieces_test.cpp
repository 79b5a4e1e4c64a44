#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "tests/ops/plain_pieces.h"
#include "tests/support/device.h"
#include "tests/support/gradients.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

/// Pieces beside Lighthouse, and alone.
namespace lighthouse::testing {
namespace {

using at::Tensor;

class Pieces : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Pieces,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

Results run_alone(const Tensors& x, const Tensor& grad_out, const Config& config) {
  return run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
    return local_attention(q, k, v, config);
  });
}

/// A small problem with pieces of any length, from one token to more than there are, and any shift.
Case random_pieces(Random& random) {
  Case c = random_case(random);
  c.config.local = draw(random, 1, draw(random, 0, 2) ? c.tokens + 3 : 8);
  c.config.local_shift = draw(random, 0, 1) ? draw(random, 0, c.config.local - 1) : 0;
  return c;
}

oracle::Cut cut_of(const Config& config) { return {config.local, config.local_shift}; }

void expect_agreement(const Tensors& x, const Tensor& grad_out, const Selection& selection,
                      const Results& ours, const Config& config, double logits = 1) {
  const Array rows = to_array(selection.rows);
  const oracle::Qkv arrays = to_arrays(x);
  expect_within_budget(
      ours, run_plainly(x, grad_out, &rows, config), x, grad_out,
      oracle::attention(arrays, rows, config, cut_of(config)),
      oracle::attention_adjoint(arrays, to_array(grad_out), rows, config, cut_of(config)), config,
      logits);
}

TEST_P(Pieces, BesideLighthouseAgreeWithTheOracle) {
  Random random(110);
  for (int i = 0; i < 40; ++i) {
    Case c = random_pieces(random);
    if (draw(random, 0, 2) == 0) c.config.scale = 0.4;
    c.config.scorer = static_cast<Scorer>(draw(random, 0, 2));
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    if (draw(random, 0, 1)) grad_out = tokens_major(grad_out);
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const Results ours = run(x, grad_out, c.config);
    expect_agreement(x, grad_out, selection, ours, c.config);
    expect_same_bits(run(x, grad_out, c.config, selection), ours);
  }
}

/// With the kernels that stock attention takes by itself.
TEST_P(Pieces, AgreeWithTheOracleAtCommonHeadDimensions) {
  const AttentionKernels kernels;
  Random random(111);
  for (const int64_t dim : {64, 128})
    for (const int64_t shift : {0, 32}) {
      Case c;
      c.config.budget = c.config.tile_budget = 4;
      c.config.local = 64;
      c.config.local_shift = shift;
      c.tokens = 256;
      c.heads = 2;
      c.dim = dim;
      SCOPED_TRACE(::testing::PrintToString(c));
      const Tensors x = random_tensors(random, c, GetParam());
      const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
      const Selection selection = select(x.q, x.k, x.v, c.config);
      expect_agreement(x, grad_out, selection, run(x, grad_out, c.config), c.config);
    }
}

TEST_P(Pieces, AloneAgreeWithTheOracle) {
  Random random(112);
  for (int i = 0; i < 40; ++i) {
    Case c = random_pieces(random);
    if (draw(random, 0, 2) == 0) c.config.scale = 0.4;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const double scale = c.config.scale.value_or(1 / std::sqrt(static_cast<double>(c.dim)));
    const oracle::Qkv arrays = to_arrays(x);
    const Array zeros({c.batch, c.heads, c.tokens});
    const Results ours = run_alone(x, grad_out, c.config);
    EXPECT_TRUE(ours.out.transpose(1, 2).is_contiguous());
    expect_within_budget(
        ours, run_plainly(x, grad_out, nullptr, c.config), x, grad_out,
        oracle::attend_pieces(arrays, cut_of(c.config), scale).out,
        oracle::attend_pieces_adjoint(arrays, cut_of(c.config), {to_array(grad_out), zeros}, scale),
        c.config);
  }
}

/// One piece that holds every token is dense attention.
TEST_P(Pieces, OfAllTokensAreDense) {
  Random random(113);
  for (const int64_t local : {50, 51, 200}) {
    Case c;
    c.tokens = 50, c.batch = 2, c.heads = 4, c.groups = 2, c.dim = 8;
    c.config.local = local;
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    expect_same_bits(run_alone(x, grad_out, c.config),
                     run_by(x, grad_out, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
                       return dense_attention(q, k, v);
                     }));
  }
}

TEST_P(Pieces, LayoutsDoNotChangeABit) {
  Random random(114);
  for (int i = 0; i < 20; ++i) {
    Case c = random_pieces(random);
    c.dim = 8;  // stock attention's order of sums may follow the layout where D is odd
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors any = random_tensors(random, c, GetParam());
    const Tensors x{any.q.contiguous(), any.k.contiguous(), any.v.contiguous()};
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const auto last_strided = [](const Tensor& t) {
      return t.transpose(2, 3).contiguous().transpose(2, 3);
    };
    const auto beside = [](const Tensors& y, const Tensor& grad, const Config& config) {
      return run(y, grad, config);
    };
    for (Results (*f)(const Tensors&, const Tensor&, const Config&) : {run_alone, +beside}) {
      const Results expected = f(x, grad_out, c.config);
      expect_same_bits(f({tokens_major(x.q), tokens_major(x.k), tokens_major(x.v)},
                         tokens_major(grad_out), c.config),
                       expected);
      expect_same_bits(
          f({tokens_major(x.q), x.k, last_strided(x.v)}, last_strided(grad_out), c.config),
          expected);
      const Tensor ones = at::ones({}, x.q.options()).expand(x.q.sizes());
      expect_same_bits(f(x, ones, c.config), f(x, ones.contiguous(), c.config));
    }
  }
}

/// A selection is frozen; all tokens from t on change; the rows before t stay, to the bit.
TEST_P(Pieces, OutputsDoNotDependOnTheFuture) {
  Random random(115);
  int changed = 0;
  for (int i = 0; i < 30; ++i) {
    const Case c = random_pieces(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Selection selection = select(x.q, x.k, x.v, c.config);
    const int64_t t = draw(random, 0, c.tokens - 1);
    const Tensors moved{x.q.clone(), x.k.clone(), x.v.clone()};
    for (const Tensor* tensor : {&moved.q, &moved.k, &moved.v}) {
      Tensor future = tensor->slice(2, t, c.tokens);
      future.copy_(at::randn(future.sizes(), future.options()) * 10);
    }
    const auto attended = [&](const Tensors& y) {
      return std::pair(attention(y.q, y.k, y.v, c.config, selection),
                       local_attention(y.q, y.k, y.v, c.config));
    };
    const auto before = attended(x), after = attended(moved);
    EXPECT_TRUE(after.first.slice(2, 0, t).equal(before.first.slice(2, 0, t))) << "t " << t;
    EXPECT_TRUE(after.second.slice(2, 0, t).equal(before.second.slice(2, 0, t))) << "t " << t;
    changed += !after.first.equal(before.first);

    // Nor do gradients flow from an output to later tokens.
    const Tensors leaf = leaves(x);
    attention(leaf.q, leaf.k, leaf.v, c.config, selection).slice(2, 0, t).sum().backward();
    for (const Tensor* tensor : {&leaf.q, &leaf.k, &leaf.v}) {
      EXPECT_EQ(tensor->grad().slice(2, t, c.tokens).count_nonzero().item<int64_t>(), 0);
    }
  }
  EXPECT_GT(changed, 15) << "the test must be able to see a change";
}

/// Logits of some hundreds: the masses of near and of gathered rows differ by more than any
/// float32.
TEST_P(Pieces, MassesMayDifferByAnyFactor) {
  Random random(116);
  for (int i = 0; i < 20; ++i) {
    Case c = random_pieces(random);
    c.config.scale = 1;
    SCOPED_TRACE(::testing::PrintToString(c));
    Tensors x = random_tensors(random, c, GetParam());
    // Some tokens shout in q, some in k: a mean over a window may be far from every token of it.
    for (Tensor* tensor : {&x.q, &x.k}) {
      const Tensor loud = at::rand({c.tokens}, at::kDouble).gt(0.8).to(tensor->device());
      *tensor = tensor->mul(loud.to(tensor->scalar_type()).mul(15).add(1).unsqueeze(-1));
    }
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const Results ours = run(x, grad_out, c.config);
    for (const Tensor& result : ours.all()) EXPECT_TRUE(result.isfinite().all().item<bool>());
    if (GetParam() != at::kDouble) continue;  // the rounding of a logit of 1000 is a unit of mass
    const TokenScores norms = norm_scores(x.q, x.k);
    const double logits = norms.q.max().item<double>() * norms.k.max().item<double>();
    expect_agreement(x, grad_out, select(x.q, x.k, x.v, c.config), ours, c.config, logits);
  }
}

TEST_P(Pieces, RowsOfZerosGiveNoNaN) {
  Random random(117);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_pieces(random);
    const Tensors zeros{at::zeros(c.q_shape(), at::kDouble).to(device(), GetParam()),
                        at::zeros(c.kv_shape(), at::kDouble).to(device(), GetParam()),
                        at::zeros(c.kv_shape(), at::kDouble).to(device(), GetParam())};
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    for (const Tensor& grad : {grad_out, at::zeros_like(grad_out)}) {
      for (const Tensor& result : run(zeros, grad, c.config).all()) {
        EXPECT_TRUE(result.isfinite().all().item<bool>());
      }
    }
  }
}

TEST(PiecesGradient, CannotBeDifferentiated) {
  const Tensor q = at::randn({1, 2, 40, 8}, device()).requires_grad_();
  Config config;
  config.budget = config.tile_budget = 1;
  config.local = 8;
  for (const auto& [out, name] :
       {std::pair(attention(q, q, q, config), "lighthouse::attend_both"),
        std::pair(local_attention(q, q, q, config), "lighthouse::attend_pieces")}) {
    const Tensor first =
        torch::autograd::grad({out.square().sum()}, {q}, {}, {}, /*create_graph=*/true)[0];
    EXPECT_TRUE(throws<c10::NotImplementedError>([&] { torch::autograd::grad({first.sum()}, {q}); },
                                                 {name, "double backward"}));
  }
}

TEST(PiecesErrors, NameTheArgument) {
  const Tensor q = at::randn({1, 4, 64, 8}), k = at::randn({1, 2, 64, 8});
  Config config;
  config.budget = config.tile_budget = 1;
  EXPECT_TRUE(throws<c10::ValueError>([&] { local_attention(q, k, k, config); }, {"local is 0"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::attend_pieces(q, k, k, 0, 0, {}); },
                                      {"local is 0", "at least 1"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { ops::attend_pieces(q, k, k, 4, 4, {}); },
                                      {"local_shift is 4", "below local, which is 4"}));
  config.local = 16;
  config.local_shift = 16;
  EXPECT_TRUE(throws<c10::ValueError>([&] { attention(q, k, k, config); }, {"local_shift is 16"}));
  EXPECT_TRUE(
      throws<c10::ValueError>([&] { local_attention(q, k, k, config); }, {"local_shift is 16"}));
  config.local_shift = 0;
  EXPECT_TRUE(throws<c10::ValueError>([&] { local_attention(q, k.slice(2, 1), k, config); },
                                      {"k has the shape"}));
  const auto [out, logsumexp_bound] = ops::attend_pieces(q, k, k, 16, 0, {});
  const Tensor& attended = out;
  const Tensor& logsumexp = logsumexp_bound;
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] { ops::attend_pieces_backward(q, q, k, k, attended, logsumexp.slice(1, 1), 16, 0, {}); },
      {"logsumexp has the shape [1, 255]", "[1, 256]"}));
}

TEST(PiecesBatch, MayBeEmpty) {
  const Tensor q = at::randn({0, 2, 30, 4}, device()).requires_grad_();
  Config config;
  config.budget = config.tile_budget = 1;
  config.local = 8;
  for (const Tensor& out : {attention(q, q, q, config), local_attention(q, q, q, config)}) {
    EXPECT_EQ(out.sizes(), q.sizes());
    EXPECT_EQ(torch::autograd::grad({out.sum()}, {q})[0].sizes(), q.sizes());
  }
}

}  // namespace
}  // namespace lighthouse::testing
