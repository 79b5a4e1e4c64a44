#include "lighthouse/kernels/select.h"

#include "tests/kernels/support.h"

namespace lighthouse::testing {
namespace {

/// Scores of coarse entries: any, or with many ties, zeros of both signs and infinities.
Array random_scores(Random& random, std::vector<int64_t> shape) {
  Array scores = rounded<float>(normals(random, std::move(shape)));
  constexpr double kFew[] = {-kInfinity, -0.0, 0.0, 1.0, kInfinity};
  const int64_t kind = draw(random, 0, 2);
  for (double& value : scores.values) {
    if (kind == 1) value = kFew[draw(random, 0, 4)];
    if (kind == 2) value = 1;
  }
  return scores;
}

/// Runs the kernel on scores (B, G, E), over maps that held something else.
oracle::Maps select(Random& random, const oracle::Scores& scores, const Case& c) {
  const Geometry g(c.tokens, c.config);
  const Buffer<float> scores_q(to_vector<float>(scores.q));
  const Buffer<float> scores_k(to_vector<float>(scores.k));
  Buffer<int32_t> rows(c.batch * c.groups * g.rows, -77);
  Buffer<Slot> slots(scores.q.values.size(), 77);
  const Select args{g,           shape_of(c), c.config.selection, scores_q.data(), scores_k.data(),
                    rows.data(), slots.data()};
  run(random, args);
  return {to_array(rows.values(), {c.batch, c.groups, g.rows}),
          to_array(slots.values(), scores.q.shape)};
}

TEST(Select, AgreesWithTheOracleExactly) {
  Random random(20);
  for (int i = 0; i < 1000; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const std::vector<int64_t> shape{c.batch, c.groups,
                                     Geometry(c.tokens, c.config).coarse_entries()};
    const oracle::Scores scores{random_scores(random, shape), random_scores(random, shape)};
    const oracle::Maps expected = oracle::select(scores, c.tokens, c.config);
    const oracle::Maps actual = select(random, scores, c);
    ASSERT_TRUE(equal(actual.rows, expected.rows));
    ASSERT_TRUE(equal(actual.slots, expected.slots));
  }
}

TEST(Select, OfEqualScoresTakesTheLowestIndices) {
  Random random(21);
  Case c;
  c.config.levels = 2;
  c.config.pooling_factor = 2;
  c.tokens = 2000;
  for (const int64_t m : {1, 2, 7, 128, 999, 1000}) {
    c.config.budget = c.config.tile_budget = m;
    const Array scores({1, 1, 1000}, 0.5);
    const Array slots = select(random, {scores, scores}, c).slots;
    for (int64_t i = 0; i < 1000; ++i) {
      ASSERT_EQ(is_refined(static_cast<Slot>(slots(0, 0, i))), i < m)
          << "m " << m << ", entry " << i;
    }
  }
}

TEST(Select, RefinesEntryZeroOfEveryLevelAgainstAnyScores) {
  Random random(22);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    Array scores({c.batch, c.groups, g.coarse_entries()}, kInfinity);
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t j = 0; j < c.groups; ++j)
        for (int64_t l = 1; l < g.levels; ++l) scores(b, j, g.coarse(l, 0)) = -kInfinity;
    const Array slots = select(random, {scores, scores}, c).slots;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t j = 0; j < c.groups; ++j)
        for (int64_t l = 1; l < g.levels; ++l)
          EXPECT_TRUE(is_refined(static_cast<Slot>(slots(b, j, g.coarse(l, 0)))));
  }
}

TEST(Select, TakesNanForMinusInfinity) {
  Random random(24);
  for (int i = 0; i < 100; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    Array with_nan = rounded<float>(normals(random, {c.batch, c.groups, g.coarse_entries()}));
    Array without = with_nan;
    for (int64_t j = 0; j < g.coarse_entries(); ++j) {
      if (draw(random, 0, 1) == 0) continue;
      with_nan(0, 0, j) = kNan;
      without(0, 0, j) = -kInfinity;
    }
    EXPECT_TRUE(equal(select(random, {with_nan, with_nan}, c).slots,
                      select(random, {without, without}, c).slots));
  }
}

TEST(Select, TheCausalRuleDoesNotSeeTheWindowItself) {
  Random random(23);
  for (int i = 0; i < 100; ++i) {
    Case c = random_case(random);
    if (c.config.levels == 1) continue;
    c.batch = c.groups = c.heads = 1;
    c.config.selection = SelectionRule::kCausal;
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    const Array scores = rounded<float>(normals(random, {1, 1, g.coarse_entries()}));
    const Array slots = select(random, {scores, scores}, c).slots;
    // The last entry of a level judges no other.
    for (int64_t l = 1; l < g.levels; ++l) {
      Array louder = scores;
      louder(0, 0, g.coarse(l, g.entries(l) - 1)) = 1e9;
      EXPECT_TRUE(equal(select(random, {louder, louder}, c).slots, slots));
    }
  }
}

}  // namespace
}  // namespace lighthouse::testing
