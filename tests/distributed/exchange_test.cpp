#include "lighthouse/distributed/exchange.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/distributed/ranks.h"
#include "tests/distributed/shards.h"
#include "tests/support/throws.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;
using distributed::exchange_heads;
using distributed::exchange_tokens;
using distributed::World;

/// (B, heads, tokens, D), every element another number.
Tensor numbered(int64_t heads, int64_t tokens, at::ScalarType type = at::kFloat) {
  return at::arange(2 * heads * tokens * 3, at::kFloat).view({2, heads, tokens, 3}).to(type);
}

TEST(Exchange, GivesEachRankItsHeadsOfTheWholeSequence) {
  for (const int64_t ranks : {1, 2, 4}) {
    run_ranks(ranks, [&](const World& world) {
      for (const bool zigzag : {false, true})
        for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
          const Tensor q = numbered(8, 24, type), k = numbered(4, 24, type).neg();
          const auto shard = [&](const Tensor& t) {
            return shard_of(t, world.rank(), ranks, zigzag);
          };
          const auto heads = exchange_heads({shard(q), shard(k)}, world.group(), zigzag);
          ASSERT_EQ(heads.size(), 2);
          EXPECT_TRUE(heads[0].equal(q.narrow(1, world.rank() * 8 / ranks, 8 / ranks)));
          EXPECT_TRUE(heads[1].equal(k.narrow(1, world.rank() * 4 / ranks, 4 / ranks)));
          const auto tokens = exchange_tokens(heads, world.group(), zigzag);
          EXPECT_TRUE(tokens[0].equal(shard(q)));
          EXPECT_TRUE(tokens[1].equal(shard(k)));
          EXPECT_TRUE(tokens[0].transpose(1, 2).is_contiguous());
        }
    });
  }
}

/// The gradient of a permutation among ranks is its reverse.
TEST(Exchange, SendsGradientsBack) {
  run_ranks(2, [](const World& world) {
    const auto shard = [&](const Tensor& t) { return shard_of(t, world.rank(), 2, true); };
    const Tensor q = shard(numbered(4, 12)).requires_grad_();
    const Tensor k = shard(numbered(2, 12)).requires_grad_();
    const Tensor weights = numbered(4, 12).square();
    const auto heads = exchange_heads({q, k}, world.group(), true);
    // k has no gradient: zeros go back in its place.
    const Tensor loss = heads[0].mul(weights.narrow(1, 2 * world.rank(), 2)).sum();
    const auto grads = torch::autograd::grad({loss}, {q, k});
    EXPECT_TRUE(grads[0].equal(shard(weights)));
    EXPECT_EQ(grads[1].count_nonzero().item<int64_t>(), 0);

    const Tensor own = numbered(2, 12).requires_grad_();
    const Tensor back = exchange_tokens({own}, world.group(), true)[0];
    const auto grad = torch::autograd::grad({back.mul(shard(weights)).sum()}, {own});
    EXPECT_TRUE(grad[0].equal(weights.narrow(1, 2 * world.rank(), 2)));
  });
}

TEST(Exchange, NamesWhatDoesNotFit) {
  run_ranks(2, [](const World& world) {
    const auto refuses = [&](at::TensorList tensors, std::initializer_list<std::string> parts,
                             bool zigzag = false) {
      EXPECT_TRUE(
          throws<c10::ValueError>([&] { exchange_heads(tensors, world.group(), zigzag); }, parts));
    };
    const Tensor rows = at::randn({1, 4, 6, 3});
    refuses({at::randn({1, 3, 6, 3})}, {"tensors[0] has 3 heads", "multiple of the 2 ranks"});
    refuses({rows, at::randn({1, 4, 5, 3})}, {"tensors[1]", "tokens", "6"});
    refuses({rows, rows.to(at::kDouble)}, {"tensors[1] is Double", "Float"});
    refuses({at::randn({4, 6, 3})}, {"tensors[0] has the shape [4, 6, 3]"});
    refuses({at::randn({1, 4, 5, 3})}, {"5", "even"}, true);
    EXPECT_TRUE(throws<c10::ValueError>(
        [&] {
          exchange_tokens({at::randn({1, 2, 5, 3})}, world.group());
        },
        {"tensors[0] has 5 tokens", "multiple of the 2 ranks"}));
  });
}

}  // namespace
}  // namespace lighthouse::testing
