#include "lighthouse/ops/attend.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"
#include "tests/support/threads.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;

class Attend : public ::testing::TestWithParam<at::ScalarType> {
  const Threads one_{1};  // the problems are too small to wake others for
};
INSTANTIATE_TEST_SUITE_P(AllTypes, Attend,
                         ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf));

/// Attention and its gradients.
struct AttendResults {
  Attended attended;
  AttendGradients grads;

  std::vector<Tensor> all() const {
    return {attended.out, attended.logsumexp, grads.q, grads.k, grads.v};
  }
};
constexpr const char* kAttendNames[] = {"out", "logsumexp", "grad_q", "grad_k", "grad_v"};

/// By products in the type of q, as a textbook has it.
AttendResults by_hand(const Tensors& inputs, const Tensor& grad_out, bool causal, double scale) {
  const Tensors x = leaves(inputs);
  const int64_t shared = x.q.size(1) / x.k.size(1);
  const Tensor k = x.k.repeat_interleave(shared, 1), v = x.v.repeat_interleave(shared, 1);
  Tensor scores = x.q.matmul(k.transpose(2, 3)).mul(scale);
  if (causal) {
    const auto options = x.q.options().dtype(at::kBool);
    const Tensor future = at::ones({scores.size(2), scores.size(3)}, options).triu(1);
    scores = scores.masked_fill(future, -kInfinity);
  }
  const Tensor logsumexp = scores.logsumexp(-1);
  const Tensor out = (scores - logsumexp.unsqueeze(-1)).exp().matmul(v);
  const auto grads = torch::autograd::grad({out}, {x.q, x.k, x.v}, {grad_out});
  return {{out.detach(), logsumexp.detach()}, {grads[0], grads[1], grads[2]}};
}

/// By the operator.
AttendResults run_attend(const Tensors& inputs, const Tensor& grad_out, bool causal,
                         std::optional<double> scale = {}) {
  const Tensors x = leaves(inputs);
  const Attended attended = attend(x.q, x.k, x.v, causal, scale);
  EXPECT_FALSE(attended.logsumexp.requires_grad());
  const auto grads = torch::autograd::grad({attended.out}, {x.q, x.k, x.v}, {grad_out});
  return {{attended.out.detach(), attended.logsumexp}, {grads[0], grads[1], grads[2]}};
}

Tensors in_type(const Tensors& x, at::ScalarType type) {
  return {x.q.to(type), x.k.to(type), x.v.to(type)};
}

/// Four times the error of the textbook's products in the same type, two units, and a unit of the
/// type of sums for each of their terms, whose order is that of a kernel.
void expect_close(const AttendResults& ours, const Tensors& x, const Tensor& grad_out, bool causal,
                  double scale) {
  const auto exact =
      by_hand(in_type(x, at::kDouble), grad_out.to(at::kDouble), causal, scale).all();
  const auto plain = by_hand(x, grad_out, causal, scale).all();
  const Rounding type = rounding(x.q.scalar_type());
  const auto terms = static_cast<double>(x.k.size(2) + x.q.size(3));
  for (size_t i = 0; i < exact.size(); ++i) {
    const Array expected = to_array(exact[i]);
    const double tolerance = 4 * relative_error(to_array(plain[i]), expected) + 2 * type.unit +
                             terms * accumulator(type).unit;
    EXPECT_TRUE(close(to_array(ours.all()[i]), expected, tolerance)) << kAttendNames[i];
  }
}

/// Queries, and as many keys or another number of them.
struct Drawn {
  Tensors x;
  Tensor grad_out;
  bool causal;
  double scale;
};
Drawn draw_call(Random& random, at::ScalarType type) {
  Case c;
  c.tokens = draw(random, 8, 90);
  c.batch = draw(random, 1, 2);
  c.groups = draw(random, 1, 2);
  c.heads = c.groups * draw(random, 1, 3);
  c.dim = draw(random, 1, 20);
  const bool causal = draw(random, 0, 1) != 0;
  Tensors x = random_tensors(random, c, type);
  const Tensor grad_out = to_tensor(normals(random, c.q_shape()), type);
  if (!causal) {
    c.tokens = draw(random, 8, 90);
    const Tensors keys = random_tensors(random, c, type);
    x.k = keys.k, x.v = keys.v;
  }
  return {x, draw(random, 0, 1) ? tokens_major(grad_out) : grad_out, causal,
          draw(random, 0, 1) ? 0.3 : 1 / std::sqrt(static_cast<double>(c.dim))};
}

TEST_P(Attend, AgreesWithFloat64) {
  Random random(90);
  for (int i = 0; i < 60; ++i) {
    const auto [x, grad_out, causal, scale] = draw_call(random, GetParam());
    SCOPED_TRACE(::testing::Message() << i << ": q " << x.q.sizes() << ", k " << x.k.sizes());
    const AttendResults ours = run_attend(x, grad_out, causal, scale);
    expect_close(ours, x, grad_out, causal, scale);
    EXPECT_EQ(ours.attended.logsumexp.scalar_type(),
              GetParam() == at::kDouble ? at::kDouble : at::kFloat);
  }
}

/// Where PyTorch's switches forbid its kernels, products are taken; and where they forbid these
/// too, nothing is computed.
TEST_P(Attend, FollowsTheSwitchesOfPyTorch) {
  Random random(91);
  const AttentionKernels kernels;
  for (int i = 0; i < 20; ++i) {
    const auto [x, grad_out, causal, scale] = draw_call(random, GetParam());
    use_attention_kernels(false);
    const AttendResults by_products = run_attend(x, grad_out, causal, scale);
    use_attention_kernels(true);
    expect_close(by_products, x, grad_out, causal, scale);
  }
  struct NoProducts {
    NoProducts() { at::globalContext().setSDPUseMath(false); }
    ~NoProducts() { at::globalContext().setSDPUseMath(true); }
  } const no_products;
  use_attention_kernels(false);
  const Tensors x = random_tensors(random, Case{}, GetParam());
  EXPECT_TRUE(throws<c10::Error>([&] { attend(x.q, x.k, x.v); }, {"kernels"}));
}

/// The bits of PyTorch's own attention, and of its gradients.
TEST_P(Attend, IsStockAttention) {
  Random random(92);
  for (int i = 0; i < 20; ++i) {
    const auto [x, grad_out, causal, scale] = draw_call(random, GetParam());
    SCOPED_TRACE(::testing::Message() << i << ": q " << x.q.sizes() << ", k " << x.k.sizes());
    if (!device().is_cpu() || (x.q.size(3) == 1)) continue;  // with its kernels alone
    const Tensors leaf = leaves(x);
    const Tensor stock = at::scaled_dot_product_attention(leaf.q, leaf.k, leaf.v, {}, 0.0, causal,
                                                          scale, x.q.size(1) != x.k.size(1));
    const auto grads = torch::autograd::grad({stock}, {leaf.q, leaf.k, leaf.v}, {grad_out});
    const auto ours = run_attend(x, grad_out, causal, scale);
    EXPECT_TRUE(ours.attended.out.equal(stock));
    EXPECT_TRUE(ours.grads.q.equal(grads[0]));
    EXPECT_TRUE(ours.grads.k.equal(grads[1]));
    EXPECT_TRUE(ours.grads.v.equal(grads[2]));
  }
}

/// As one softmax: each weighted by its share of the mass.
Attended merged(const Attended& a, const Attended& b) {
  const Tensor logsumexp = at::logaddexp(a.logsumexp, b.logsumexp);
  const auto share = [&](const Attended& part) {
    const Tensor weight = (part.logsumexp - logsumexp).exp().unsqueeze(-1);
    return weight * part.out.to(weight.scalar_type());
  };
  return {(share(a) + share(b)).to(a.out.scalar_type()), logsumexp};
}

/// Attention over all keys is that over two blocks of them, merged; and so are its gradients, where
/// each block's backward is given what was merged. The later queries see all of the first block and
/// the second causally, as in a ring.
TEST_P(Attend, OverTwoBlocksOfKeysIsOnePiece) {
  Random random(93);
  for (int i = 0; i < 40; ++i) {
    Case c;
    c.tokens = draw(random, 8, 90);
    c.groups = draw(random, 1, 2);
    c.heads = c.groups * draw(random, 1, 2);
    c.dim = 8 * draw(random, 1, 3);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, GetParam());
    const Tensor grad_out = to_tensor(normals(random, c.q_shape()), GetParam());
    const int64_t cut = draw(random, 1, c.tokens - 1);
    const auto first = [&](const Tensor& t) { return t.narrow(2, 0, cut); };
    const auto second = [&](const Tensor& t) { return t.narrow(2, cut, c.tokens - cut); };

    const Attended early = attend(first(x.q), first(x.k), first(x.v));
    const Attended late = merged(attend(second(x.q), first(x.k), first(x.v), /*causal=*/false),
                                 attend(second(x.q), second(x.k), second(x.v)));
    const AttendGradients of_early =
        attend_backward(first(grad_out), first(x.q), first(x.k), first(x.v), early);
    const AttendGradients before = attend_backward(second(grad_out), second(x.q), first(x.k),
                                                   first(x.v), late, /*causal=*/false);
    const AttendGradients own =
        attend_backward(second(grad_out), second(x.q), second(x.k), second(x.v), late);
    const AttendResults ours{
        {at::cat({early.out, late.out}, 2), at::cat({early.logsumexp, late.logsumexp}, 2)},
        {at::cat({of_early.q, before.q + own.q}, 2), at::cat({of_early.k + before.k, own.k}, 2),
         at::cat({of_early.v + before.v, own.v}, 2)}};
    expect_close(ours, x, grad_out, true, 1 / std::sqrt(static_cast<double>(c.dim)));
  }
}

TEST_P(Attend, ResultsHaveTheLayoutsOfTheInputs) {
  Random random(94);
  Case c;
  c.batch = 2, c.tokens = 12, c.heads = 4, c.groups = 2, c.dim = 8;
  const Tensors any = random_tensors(random, c, GetParam());
  for (const bool by_token : {false, true}) {
    const auto as = [&](const Tensor& t) { return by_token ? tokens_major(t) : t.contiguous(); };
    const Tensors x{as(any.q), as(any.k), as(any.v)};
    const AttendResults results = run_attend(x, at::ones_like(any.q), true);
    EXPECT_EQ(results.attended.out.strides(), x.q.strides());
    EXPECT_TRUE(results.attended.logsumexp.is_contiguous());
    EXPECT_EQ(results.grads.q.strides(), x.q.strides());
    EXPECT_EQ(results.grads.k.strides(), x.k.strides());
    EXPECT_EQ(results.grads.v.strides(), x.v.strides());
  }
}

TEST(AttendErrors, NameTheArgument) {
  const Tensor q = at::randn({1, 4, 6, 8}), k = at::randn({1, 2, 6, 8});
  const Tensor fewer = k.slice(2, 1);
  EXPECT_TRUE(throws<c10::ValueError>([&] { attend(q, fewer, fewer); },
                                      {"k has the shape [1, 2, 5, 8]", "[1, 4, 6, 8]"}));
  EXPECT_NO_THROW(attend(q, fewer, fewer, /*causal=*/false));
  const Tensor none = k.slice(2, 6);
  EXPECT_TRUE(throws<c10::ValueError>([&] { attend(q, none, none, /*causal=*/false); },
                                      {"k has the shape [1, 2, 0, 8]", "a token at least"}));
  const Attended attended = attend(q, k, k);
  EXPECT_TRUE(throws<c10::ValueError>(
      [&] {
        attend_backward(q, q, k, k, {attended.out, attended.logsumexp.slice(2, 1)});
      },
      {"logsumexp has the shape [1, 4, 5]", "[1, 4, 6]"}));
  EXPECT_TRUE(throws<c10::TypeError>(
      [&] {
        attend_backward(q, q, k, k, {attended.out, attended.logsumexp.to(at::kDouble)});
      },
      {"logsumexp is Double", "Float"}));
  EXPECT_TRUE(throws<c10::ValueError>([&] { attend_backward(k, q, k, k, attended); },
                                      {"grad_out has the shape [1, 2, 6, 8]"}));
}

TEST(AttendGradient, CannotBeDifferentiated) {
  const Tensor q = at::randn({1, 2, 6, 8}, device()).requires_grad_();
  const Tensor first = torch::autograd::grad({attend(q, q, q).out.square().sum()}, {q}, {}, {},
                                             /*create_graph=*/true)[0];
  EXPECT_TRUE(throws<c10::NotImplementedError>([&] { torch::autograd::grad({first.sum()}, {q}); },
                                               {"lighthouse::attend", "double backward"}));
}

TEST(AttendBatch, MayBeEmpty) {
  const Tensor q = at::randn({0, 2, 30, 4}, device()).requires_grad_();
  const Attended attended = attend(q, q, q);
  EXPECT_EQ(attended.out.sizes(), q.sizes());
  EXPECT_EQ(attended.logsumexp.sizes(), (std::vector<int64_t>{0, 2, 30}));
  attended.out.sum().backward();
  EXPECT_EQ(q.grad().sizes(), q.sizes());
}

}  // namespace
}  // namespace lighthouse::testing
