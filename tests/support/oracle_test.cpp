#include "tests/support/oracle.h"

#include <cmath>
#include <limits>

#include "tests/support/cases.h"
#include "tests/support/compare.h"

namespace lighthouse::testing {
namespace {

Array of(std::vector<int64_t> shape, std::vector<double> values) {
  Array array(std::move(shape));
  EXPECT_EQ(array.values.size(), values.size());
  array.values = std::move(values);
  return array;
}

/// 7 tokens, 3 levels, pooling by 2: two roots of 4 tokens, the last token absent. Entries 0 to 7
/// are tokens, 8 to 11 pairs, 12 and 13 roots.
Config small() {
  Config config;
  config.levels = 3;
  config.pooling_factor = 2;
  config.budget = config.tile_budget = 1;
  return config;
}

TEST(Oracle, PoolsScoresByTheMaximum) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Array scores = of({1, 1, 7}, {1, 5, 2, nan, 3, 4, 6});
  const Array pooled = oracle::pool({scores, scores}, small()).q;
  EXPECT_TRUE(equal(pooled, of({1, 1, 6}, {5, 2, 4, 6, 5, 6})));
}

TEST(Oracle, SelectsAndOrders) {
  // A budget of 1 goes to entry 0 of each level, in whose tile the loud tokens of root 1 lose.
  const Array loud = of({1, 1, 6}, {1, 2, 3, 9, 2, 9});
  const auto maps = oracle::select({loud, loud}, 7, small());
  EXPECT_TRUE(equal(maps.rows, of({1, 1, 6}, {0, 1, 8, 9, 12, 13})));
  EXPECT_TRUE(equal(maps.slots, of({1, 1, 6}, {2 * 2 + 1, 2 * 3, -1, -1, 2 * 4 + 1, 2 * 5})));
}

TEST(Oracle, TakesHalfByQAndTheRestByK) {
  Config config = small();
  config.levels = 2;
  config.budget = config.tile_budget = 3;
  // Five roots: 0 first, of m/2 = 1 by q; then by k the best two, where 2 ties with 3 and comes
  // first.
  const Array q = of({1, 1, 5}, {0, 9, 1, 1, 1});
  const Array k = of({1, 1, 5}, {0, 1, 5, 5, 7});
  EXPECT_TRUE(equal(oracle::select({q, k}, 10, config).rows,
                    of({1, 1, 11}, {0, 1, 10, 11, 4, 5, 12, 13, 8, 9, 14})));
  // The causal rule judges by the entry before: 3 and 4 by k of 2 and 3.
  config.selection = SelectionRule::kCausal;
  EXPECT_TRUE(equal(oracle::select({q, k}, 10, config).rows,
                    of({1, 1, 11}, {0, 1, 10, 11, 12, 6, 7, 13, 8, 9, 14})));
}

TEST(Oracle, PoolsAndScatters) {
  const Array rows = of({1, 1, 6}, {0, 1, 8, 9, 12, 13});
  const Array x = of({1, 1, 7, 1}, {1, 2, 3, 4, 5, 6, 7});
  EXPECT_TRUE(equal(oracle::gather(x, rows, small()), of({1, 1, 6, 1}, {1, 2, 1.5, 3.5, 2.5, 6})));
  // Tokens 0, 1; the pairs that end at 1 and 3; the root that ends at 3 (that at 7 is past the
  // end).
  const Array out = of({1, 1, 6, 1}, {1, 10, 100, 1000, 10000, 100000});
  EXPECT_TRUE(equal(oracle::scatter(out, rows, 7, small()),
                    of({1, 1, 7, 1}, {1, 110, 100, 11000, 11000, 10000, 10000})));
}

TEST(Oracle, LeavesWindowsPastTheEndAtZero) {
  const Array rows = of({1, 1, 4}, {6, 7, 11, 13});
  const Array x = of({1, 1, 5, 1}, {1, 2, 3, 4, 5});
  EXPECT_TRUE(equal(oracle::gather(x, rows, small()), of({1, 1, 4, 1}, {0, 0, 0, 5})));
}

TEST(Oracle, AttendsCausally) {
  const double e = std::exp(0.5 * 2);
  const oracle::Qkv x{of({1, 1, 2, 1}, {7, 1}), of({1, 1, 2, 1}, {3, 5}),
                      of({1, 1, 2, 1}, {10, 20})};
  const oracle::Attended attended = oracle::attend(x, 0.5);
  EXPECT_TRUE(close(attended.out, of({1, 1, 2, 1}, {10, (10 + 20 * e) / (1 + e)}), 1e-15));
  EXPECT_TRUE(close(attended.lse, of({1, 1, 2}, {10.5, 1.5 + std::log(1 + e)}), 1e-15));
}

TEST(Oracle, AttendsInsidePieces) {
  // Equal scores: each position takes the mean of what its piece has up to it.
  const oracle::Qkv x{Array({1, 1, 7, 1}), Array({1, 1, 7, 1}),
                      of({1, 1, 7, 1}, {1, 2, 4, 8, 16, 32, 64})};
  const auto attended = [&](int64_t length, int64_t shift) {
    return oracle::attend_pieces(x, {length, shift}, 1);
  };
  EXPECT_TRUE(
      close(attended(3, 0).out, of({1, 1, 7, 1}, {1, 1.5, 7.0 / 3, 8, 12, 56.0 / 3, 64}), 1e-15));
  EXPECT_TRUE(close(attended(3, 2).out, of({1, 1, 7, 1}, {1, 1.5, 4, 6, 28.0 / 3, 32, 48}), 1e-15));
  EXPECT_TRUE(close(attended(3, 2).lse,
                    of({1, 1, 7}, {0, std::log(2), 0, std::log(2), std::log(3), 0, std::log(2)}),
                    1e-15));
  const Array dense = oracle::attend(x, 1).out;
  EXPECT_TRUE(equal(attended(7, 0).out, dense));
  EXPECT_TRUE(equal(attended(100, 0).out, dense));
  EXPECT_TRUE(equal(attended(100, 50).out, dense));
  EXPECT_TRUE(equal(attended(1, 0).out, x.v));
}

TEST(Oracle, MergesAsOneSoftmax) {
  // As in PoolsAndScatters: 0 hears its token alone, 1 its token and a pair, 6 a root alone.
  const Array rows = of({1, 1, 6}, {0, 1, 8, 9, 12, 13});
  const Array near = of({1, 1, 7, 1}, {2, 4, 8, 16, 32, 64, 128});
  const Array far = of({1, 1, 6, 1}, {1, 10, 100, 1000, 10000, 100000});
  const auto merged = [&](double near_lse, std::vector<double> far_lse) {
    return oracle::merge({near, Array({1, 1, 7}, near_lse)},
                         {far, of({1, 1, 6}, std::move(far_lse))}, rows, small());
  };
  // Equal masses: half near, half the mean of what is heard.
  const oracle::Attended even = merged(1, {1, 1, 1, 1, 1, 1});
  EXPECT_TRUE(close(even.out, of({1, 1, 7, 1}, {1.5, 29.5, 54, 2758, 2766, 5032, 5064}), 1e-15));
  EXPECT_TRUE(close(even.lse, Array({1, 1, 7}, 1 + std::log(2)), 1e-15));
  // Token 1's row has three times near's mass, so 3/2 times it in a mean of two.
  const oracle::Attended loud = merged(0, {0, std::log(3), 0, 0, 0, 0});
  EXPECT_TRUE(
      close(of({1}, {loud.out(0, 0, 1, 0)}), of({1}, {(4 + 1.5 * 10 + 0.5 * 100) / 3}), 1e-15));
  EXPECT_TRUE(close(of({1}, {loud.lse(0, 0, 1)}), of({1}, {std::log(3)}), 1e-15));
  // What is overwhelmed does not count, whatever it holds; no mass at all leaves near.
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  EXPECT_TRUE(equal(merged(1000, {0, 0, 0, 0, 0, 0}).out, near));
  EXPECT_TRUE(equal(merged(0, std::vector<double>(6, kNone)).out, near));
  EXPECT_TRUE(equal(merged(kNone, std::vector<double>(6, kNone)).out, near));
  EXPECT_TRUE(close(merged(kNone, std::vector<double>(6, 0)).out,
                    of({1, 1, 7, 1}, {1, 55, 100, 5500, 5500, 10000, 10000}), 1e-15));
}

TEST(Oracle, PacksDocuments) {
  // Documents of 3 and 4 tokens, of a root each, and a third root that has none. Entries 0 to 11
  // are positions, of which 3 and those from 8 on are absent; 12 to 17 pairs, 18 to 20 roots.
  const oracle::Documents documents{{{0, 3}}, 2};
  EXPECT_EQ(oracle::entries(7, small(), documents), 21);
  EXPECT_EQ(oracle::length(7, small(), documents), 7);
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const Array scores = of({1, 1, 7}, {1, 5, 2, 9, 3, 4, 6});
  EXPECT_EQ(oracle::pool({scores, scores}, small(), documents).q.values,
            (std::vector<double>{5, 2, 9, 6, kNone, kNone, 5, 9, kNone}));

  const Array rows = of({1, 1, 7}, {0, 1, 12, 13, 18, 19, 20});
  const Array x = of({1, 1, 7, 1}, {1, 2, 3, 4, 5, 6, 7});
  EXPECT_TRUE(equal(oracle::gather(x, rows, small(), documents),
                    of({1, 1, 7, 1}, {1, 2, 1.5, 3, 2, 5.5, 0})));
  // The pair of token 2 and the first root end past their document: nobody hears them.
  const oracle::Attended near{of({1, 1, 7, 1}, {2, 4, 8, 16, 32, 64, 128}), Array({1, 1, 7}, 1)};
  const oracle::Attended far{of({1, 1, 7, 1}, {1, 10, 100, 1e3, 1e4, 1e5, 1e6}),
                             Array({1, 1, 7}, 1)};
  EXPECT_TRUE(close(oracle::merge(near, far, rows, small(), documents).out,
                    of({1, 1, 7, 1}, {1.5, 29.5, 54, 16, 32, 64, 50064}), 1e-15));
}

TEST(Oracle, AttendsInsidePiecesOfADocument) {
  // Pieces from 1, 4 and 7 on, and from the second document's start on.
  const oracle::Qkv x{Array({1, 1, 7, 1}), Array({1, 1, 7, 1}),
                      of({1, 1, 7, 1}, {1, 2, 4, 8, 16, 32, 64})};
  EXPECT_TRUE(close(oracle::attend_pieces(x, {3, 1}, 1, {{{0, 3}}, 2}).out,
                    of({1, 1, 7, 1}, {1, 2, 3, 8, 16, 24, 112.0 / 3}), 1e-15));
}

TEST(Oracle, OneDocumentIsAllThereIs) {
  Random random(3);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const oracle::Qkv x = random_qkv(random, c);
    const oracle::Documents one{std::vector(c.batch, std::vector<int64_t>{0}), 1};
    const auto maps = [&](const oracle::Documents& documents) {
      return oracle::select(oracle::pool(oracle::norm_scores(x.q, x.k), c.config, documents),
                            c.tokens, c.config, documents);
    };
    const Array rows = maps({}).rows;
    EXPECT_TRUE(equal(maps(one).rows, rows));
    const oracle::Cut cut{draw(random, 1, c.tokens + 2), 0};
    EXPECT_TRUE(close(oracle::attention(x, rows, c.config, cut, one),
                      oracle::attention(x, rows, c.config, cut), 1e-14));
  }
}

/// <grad, f(x + h d)> differentiated in h at 0, by central differences.
template <class F>
double slope(const F& f, const oracle::Qkv& x, const oracle::Qkv& direction, const Array& grad) {
  constexpr double kStep = 1e-5;
  const auto value = [&](double h) {
    oracle::Qkv moved = x;
    for (auto [to, along] : {std::pair(&moved.q, &direction.q), std::pair(&moved.k, &direction.k),
                             std::pair(&moved.v, &direction.v)})
      for (size_t i = 0; i < to->values.size(); ++i) to->values[i] += h * along->values[i];
    const Array out = f(moved);
    return std::inner_product(out.values.begin(), out.values.end(), grad.values.begin(), 0.0);
  };
  return (value(kStep) - value(-kStep)) / (2 * kStep);
}

/// Whether `grad` is what finite differences of f say: <grad_out, f>, along a random direction.
template <class F>
void expect_gradient(Random& random, const F& f, const oracle::Qkv& x, const Array& grad_out,
                     const oracle::Qkv& grad) {
  const oracle::Qkv along{normals(random, x.q.shape), normals(random, x.k.shape),
                          normals(random, x.v.shape)};
  double expected = 0;
  double absolute_sum = 0;
  for (auto [g, d] :
       {std::pair(&grad.q, &along.q), std::pair(&grad.k, &along.k), std::pair(&grad.v, &along.v)})
    for (size_t j = 0; j < g->values.size(); ++j) {
      expected += g->values[j] * d->values[j];
      absolute_sum += std::abs(g->values[j] * d->values[j]);
    }
  // The step's square, and the rounding of a sum over the step.
  EXPECT_NEAR(slope(f, x, along, grad_out), expected, 1e-7 * (1 + absolute_sum));
}

TEST(Oracle, GradientsAreThoseOfFiniteDifferences) {
  Random random(1);
  for (int i = 0; i < 20; ++i) {
    Case c = random_case(random);
    c.tokens = std::min<int64_t>(c.tokens, 40);
    c.config.tile_budget = c.config.budget = 3;
    SCOPED_TRACE(::testing::PrintToString(c));
    const oracle::Qkv x = random_qkv(random, c);
    const Array grad_out = normals(random, c.q_shape());
    const Array rows =
        oracle::select(oracle::pool(oracle::norm_scores(x.q, x.k), c.config), c.tokens, c.config)
            .rows;
    expect_gradient(
        random, [&](const oracle::Qkv& y) { return oracle::attention(y, rows, c.config); }, x,
        grad_out, oracle::attention_adjoint(x, grad_out, rows, c.config));
    const int64_t length = draw(random, 1, c.tokens + 2);
    const oracle::Cut cut{length, draw(random, 0, length - 1)};
    expect_gradient(
        random, [&](const oracle::Qkv& y) { return oracle::attention(y, rows, c.config, cut); }, x,
        grad_out, oracle::attention_adjoint(x, grad_out, rows, c.config, cut));
    const oracle::Documents documents = random_documents(random, c.batch, c.tokens);
    const Array packed =
        oracle::select(oracle::pool(oracle::norm_scores(x.q, x.k), c.config, documents), c.tokens,
                       c.config, documents)
            .rows;
    expect_gradient(
        random,
        [&](const oracle::Qkv& y) {
          return oracle::attention(y, packed, c.config, cut, documents);
        },
        x, grad_out, oracle::attention_adjoint(x, grad_out, packed, c.config, cut, documents));
  }
}

TEST(Oracle, MergesMassesOfAnySize) {
  Random random(2);
  for (int i = 0; i < 20; ++i) {
    const Case c = random_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const oracle::Qkv x = random_qkv(random, c);
    const Array rows =
        oracle::select(oracle::pool(oracle::norm_scores(x.q, x.k), c.config), c.tokens, c.config)
            .rows;
    // Masses of two positions in three differ by e^100 and more.
    const auto attended = [&](int64_t length) {
      oracle::Attended result{normals(random, {c.batch, c.heads, length, c.dim}),
                              normals(random, {c.batch, c.heads, length})};
      for (double& lse : result.lse.values) lse += 200 * static_cast<double>(draw(random, -1, 1));
      return result;
    };
    const oracle::Attended near = attended(c.tokens), near_along = attended(c.tokens);
    const oracle::Attended far = attended(rows.size(2)), far_along = attended(rows.size(2));
    const Array grad_out = normals(random, c.q_shape());
    const oracle::MergeGradients grad = oracle::merge_adjoint(near, far, rows, c.config, grad_out);

    double expected = 0;
    double absolute_sum = 0;
    constexpr double kStep = 1e-7;
    const auto moved = [&](oracle::Attended from, const oracle::Attended& along, double step) {
      for (auto [to, by] : {std::pair(&from.out, &along.out), std::pair(&from.lse, &along.lse)})
        for (size_t j = 0; j < to->values.size(); ++j) to->values[j] += step * by->values[j];
      return from;
    };
    for (auto [of, along] : {std::pair(&grad.near, &near_along), std::pair(&grad.far, &far_along)})
      for (auto [g, d] : {std::pair(&of->out, &along->out), std::pair(&of->lse, &along->lse)})
        for (size_t j = 0; j < g->values.size(); ++j) {
          expected += g->values[j] * d->values[j];
          absolute_sum += std::abs(g->values[j] * d->values[j]);
        }
    const auto value = [&](double step) {
      const Array out =
          oracle::merge(moved(near, near_along, step), moved(far, far_along, step), rows, c.config)
              .out;
      return std::inner_product(out.values.begin(), out.values.end(), grad_out.values.begin(), 0.0);
    };
    EXPECT_NEAR((value(kStep) - value(-kStep)) / (2 * kStep), expected, 1e-6 * (1 + absolute_sum));
  }
}

}  // namespace
}  // namespace lighthouse::testing
