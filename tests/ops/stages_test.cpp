#include <ATen/ops/randn.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"
#include "tests/ops/meta.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"

namespace lighthouse::testing {
namespace {

using at::Tensor;

/// The results of every operator.
std::vector<Tensor> run_operators(const Tensors& x, const Case& c, const Tensor& rows,
                                  const Tensor& slots, at::Device device) {
  const auto on = [&](const Tensor& tensor) { return tensor.to(device); };
  const std::vector<int64_t> geometry = ops::geometry_list(c.tokens, c.config);
  const Tensor q = on(x.q);
  const Tensor k = on(x.k);
  const Tensor v = on(x.v);
  std::vector<Tensor> results;
  const auto keep = [&](const auto&... tensors) { (results.push_back(tensors), ...); };
  const auto [scores_q, scores_k, roots] = ops::score(q, k, v, geometry);
  keep(scores_q, scores_k, roots, ops::roots(q, k, v, geometry));
  const TokenScores gated = gla_scores(q, k, v, on(x.q.select(3, 0).abs().neg()));
  keep(gated.q, gated.k);
  std::apply(keep, ops::pool_scores(q.select(3, 0).to(at::kFloat), k.select(3, 0).to(at::kFloat),
                                    geometry));
  std::apply(keep, ops::select(scores_q, scores_k, "causal", geometry));
  const auto [gathered_q, gathered_k, gathered_v] =
      ops::gather(q, k, v, roots, on(rows), on(slots), geometry);
  keep(gathered_q, gathered_k, gathered_v);
  const bool heads_major = q.stride(1) >= q.stride(2);
  std::apply(keep, ops::gather_backward(gathered_q, gathered_k, gathered_v, on(slots), heads_major,
                                        geometry));
  const auto [attended, logsumexp] = ops::attend(q, k, v, /*causal=*/true, {});
  keep(attended, logsumexp);
  std::apply(keep, ops::attend_backward(attended, q, k, v, attended, logsumexp, true, {}));
  const auto [local_out, local_sums] = ops::attend_pieces(q, k, v, 7, 3, {});
  keep(local_out, local_sums);
  std::apply(keep,
             ops::attend_pieces_backward(local_out, q, k, v, local_out, local_sums, 7, 3, {}));
  const auto both = ops::attend_both(q, k, v, roots, on(rows), on(slots), geometry, 7, 3, {});
  std::apply(keep, both);
  const auto [both_out, both_sums, both_q, both_k, both_v, far_sums] = both;
  std::apply(keep,
             ops::attend_both_backward(both_out, q, k, v, both_out, both_sums, both_q, both_k,
                                       both_v, far_sums, on(rows), on(slots), geometry, 7, 3, {}));
  const Tensor out = ops::scatter(gathered_q, on(rows), on(slots), geometry);
  keep(out, ops::scatter_backward(out, on(rows), geometry));
  return results;
}

/// Compilers trace operators on the meta device: sizes, strides and types must be those of others.
TEST(Stages, MetaTensorsGetTheShapesOfOthers) {
  Random random(80);
  for (int i = 0; i < 40; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, i % 2 ? at::kBFloat16 : at::kFloat);
    const Selection maps = select(x.q, x.k, x.v, c.config);
    const auto expected = run_operators(x, c, maps.rows, maps.slots, device());
    expect_meta_of(expected, run_operators(x, c, maps.rows, maps.slots, at::kMeta));
  }
}

TEST(Stages, RootsAreThoseOfTheScoreStage) {
  Random random(82);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_case(random);
    const Tensors x = random_tensors(random, c, at::kBFloat16);
    const std::vector<int64_t> geometry = ops::geometry_list(c.tokens, c.config);
    const Tensor with_scores = std::get<2>(ops::score(x.q, x.k, x.v, geometry));
    EXPECT_TRUE(ops::roots(x.q, x.k, x.v, geometry).equal(with_scores));
  }
}

TEST(Stages, TakeMapsAndScoresOfAnyStrides) {
  Random random(81);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    c.batch = 2;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Tensors x = random_tensors(random, c, at::kFloat);
    const Selection maps = select(x.q, x.k, x.v, c.config);
    const auto strided = [](const Tensor& t) {
      return t.transpose(0, 2).contiguous().transpose(0, 2);
    };
    const auto expected = run_operators(x, c, maps.rows, maps.slots, device());
    const auto actual = run_operators(x, c, strided(maps.rows), strided(maps.slots), device());
    for (size_t j = 0; j < actual.size(); ++j) EXPECT_TRUE(actual[j].equal(expected[j])) << j;
  }
}

}  // namespace
}  // namespace lighthouse::testing
