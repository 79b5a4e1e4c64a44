#include "lighthouse/kernels/score.h"

#include "tests/kernels/support.h"

namespace lighthouse::testing {
namespace {

template <class T>
class Score : public ::testing::Test {};
TYPED_TEST_SUITE(Score, AllTypes);

/// Norms are never negative: -1 takes the place of -infinity, of which no error can be taken.
Array finite(Array scores) {
  for (double& value : scores.values)
    if (value == -kInfinity) value = -1;
  return scores;
}

/// The mean of every root window, for each head of q, k and v: (B, R, H + 2 G, D).
Array root_means(const oracle::Qkv& x, const Case& c) {
  const Geometry g = geometry_of(c);
  Array roots({c.batch, 1, g.roots});
  for (size_t i = 0; i < roots.values.size(); ++i)
    roots.values[i] = static_cast<double>(g.id(g.root_level(), static_cast<int64_t>(i) % g.roots));
  Array result({c.batch, g.roots, c.heads + 2 * c.groups, c.dim});
  int64_t column = 0;
  for (const Array* part : {&x.q, &x.k, &x.v}) {
    const Array means = oracle::gather(*part, roots, c.config, c.documents);
    for (int64_t h = 0; h < part->size(1); ++h, ++column)
      for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t r = 0; r < g.roots; ++r)
          for (int64_t d = 0; d < c.dim; ++d) result(b, r, column, d) = means(b, h, r, d);
  }
  return result;
}

TYPED_TEST(Score, AgreesWithTheOracle) {
  using T = TypeParam;
  Random random(10);
  for (int i = 0; i < 100; ++i) {
    Case c = packed_case(random);
    if (c.config.levels == 1) c.config.levels = 2, c.config.budget = c.config.tile_budget;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g = geometry_of(c);
    const RootTable table(c);
    const oracle::Qkv x = rounded<T>(random_qkv(random, c));
    const Strided<T> q(random, x.q);
    const Strided<T> k(random, x.k);
    const Strided<T> v(random, x.v);
    const size_t count = c.batch * c.groups * g.coarse_entries();
    Buffer<float> scores_q(count, kNan);
    Buffer<float> scores_k(count, kNan);
    Buffer<T> roots(c.batch * g.roots * (c.heads + 2 * c.groups) * c.dim, store<T>(kNan));
    const lighthouse::Score<T> args{g,
                                    shape_of(c),
                                    q.const_rows(),
                                    k.const_rows(),
                                    v.const_rows(),
                                    scores_q.data(),
                                    scores_k.data(),
                                    roots.data(),
                                    table.documents()};
    run(random, args);

    const oracle::Scores expected =
        oracle::pool(oracle::norm_scores(x.q, x.k), c.config, c.documents);
    // D squares and their sum round in the accumulator, the root halves that; scores are float32.
    const double tolerance =
        static_cast<double>(c.dim + 1) * accumulator(rounding<T>()).unit + kFloat32.unit;
    EXPECT_TRUE(close(finite(to_array(scores_q.values(), expected.q.shape)), finite(expected.q),
                      tolerance));
    EXPECT_TRUE(close(finite(to_array(scores_k.values(), expected.k.shape)), finite(expected.k),
                      tolerance));

    const oracle::Qkv sizes{absolute(x.q), absolute(x.k), absolute(x.v)};
    const Array means = root_means(x, c);
    EXPECT_TRUE(within(to_array(roots.values(), means.shape), means,
                       linear_budget(root_means(sizes, c), g.root_window(), rounding<T>())));
  }
}

TEST(PoolScores, AgreesWithTheOracleExactly) {
  Random random(11);
  for (int i = 0; i < 100; ++i) {
    Case c = packed_case(random);
    if (c.config.levels == 1) c.config.levels = 2, c.config.budget = c.config.tile_budget;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g = geometry_of(c);
    const RootTable table(c);
    oracle::Scores tokens{normals(random, {c.batch, c.heads, c.tokens}),
                          normals(random, {c.batch, c.groups, c.tokens})};
    for (Array* scores : {&tokens.q, &tokens.k}) {
      *scores = rounded<float>(std::move(*scores));
      for (double& value : scores->values) {
        const int64_t kind = draw(random, 0, 19);
        if (kind == 0) value = kNan;
        if (kind == 1) value = kInfinity;
        if (kind == 2) value = -kInfinity;
      }
    }
    const Buffer<float> tokens_q(to_vector<float>(tokens.q));
    const Buffer<float> tokens_k(to_vector<float>(tokens.k));
    const size_t count = c.batch * c.groups * g.coarse_entries();
    Buffer<float> scores_q(count, kNan);
    Buffer<float> scores_k(count, kNan);
    const lighthouse::PoolScores args{g,
                                      shape_of(c),
                                      tokens_q.data(),
                                      tokens_k.data(),
                                      scores_q.data(),
                                      scores_k.data(),
                                      table.documents()};
    run(random, args);
    const oracle::Scores expected = oracle::pool(tokens, c.config, c.documents);
    EXPECT_EQ(to_array(scores_q.values(), expected.q.shape).values, expected.q.values);
    EXPECT_EQ(to_array(scores_k.values(), expected.k.shape).values, expected.k.values);
  }
}

}  // namespace
}  // namespace lighthouse::testing
