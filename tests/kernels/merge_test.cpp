#include "lighthouse/kernels/merge.h"

#include <cmath>

#include "tests/kernels/support.h"

namespace lighthouse::testing {
namespace {

template <class T>
class Merge : public ::testing::Test {};
TYPED_TEST_SUITE(Merge, AllTypes);

/// Two branches to merge, in the numbers of T and its accumulator.
template <class T>
struct Branches {
  using Acc = accumulator_t<T>;

  Case c;
  Geometry g;
  Pieces pieces;
  oracle::Maps maps;
  oracle::Attended near;  ///< (B, H, N, D)
  oracle::Attended far;   ///< (B, H, S, D)

  explicit Branches(Random& random) : Branches(random, packed_case(random)) {}
  Branches(Random& random, const Case& problem)
      : c(problem),
        g(geometry_of(c)),
        pieces(random_pieces(random, c.tokens)),
        maps(random_maps(random, c)),
        near(attended(random, g.tokens)),
        far(attended(random, g.rows)) {}

  oracle::Attended merged() const {
    return oracle::merge(near, far, maps.rows, c.config, c.documents);
  }

  /// The most that exponents differ by where a mass is not 0 for it.
  double spread() const {
    double least = kInfinity, most = -kInfinity;
    for (const Array* lse : {&near.lse, &far.lse})
      for (const double value : lse->values) {
        if (!std::isfinite(value)) continue;
        least = std::min(least, value);
        most = std::max(most, value);
      }
    return std::min(most - least, 750.0);
  }
  /// Roundings of a weight: of the exponent, of an exponential, of a sum over levels, of quotients.
  int64_t roundings() const { return static_cast<int64_t>(spread()) + g.levels + 12; }

 private:
  oracle::Attended attended(Random& random, int64_t rows) const {
    oracle::Attended result{rounded<T>(normals(random, {c.batch, c.heads, rows, c.dim})),
                            normals(random, {c.batch, c.heads, rows})};
    for (double& lse : result.lse.values) lse *= 3;
    result.lse = rounded<Acc>(result.lse);
    return result;
  }
};

/// (B, H, .) as rows of one element.
Array as_rows(Array lse) {
  lse.shape.push_back(1);
  return lse;
}

/// An array (B, H, N) by Pieces::lse_index.
template <class Acc>
std::vector<Acc> by_pieces(const Array& lse, const Pieces& pieces) {
  std::vector<Acc> result(lse.values.size());
  for (int64_t b = 0; b < lse.size(0); ++b)
    for (int64_t h = 0; h < lse.size(1); ++h)
      for (int64_t j = 0; j < lse.size(2); ++j)
        result[pieces.lse_index(lse.size(1), b, h, j)] = static_cast<Acc>(lse(b, h, j));
  return result;
}

template <class Acc>
Array from_pieces(const std::vector<Acc>& stored, const Pieces& pieces,
                  std::vector<int64_t> shape) {
  Array lse(std::move(shape));
  for (int64_t b = 0; b < lse.size(0); ++b)
    for (int64_t h = 0; h < lse.size(1); ++h)
      for (int64_t j = 0; j < lse.size(2); ++j)
        lse(b, h, j) = static_cast<double>(stored[pieces.lse_index(lse.size(1), b, h, j)]);
  return lse;
}

/// Runs the kernel over branches in layouts drawn at random.
template <class T>
oracle::Attended merge(Random& random, const Branches<T>& x) {
  using Acc = accumulator_t<T>;
  const Segments<T> near_out(random, x.pieces, x.near.out);
  const Segments<Acc> near_lse(random, x.pieces, as_rows(x.near.lse));
  const Strided<T> gathered_out(random, x.far.out);
  const Strided<Acc> gathered_lse(random, as_rows(x.far.lse));
  const Buffer<Slot> slots(to_vector<Slot>(x.maps.slots));
  const RootTable table(x.c);
  Strided<T> out(random, x.c.q_shape());
  Buffer<Acc> lse(x.near.lse.values.size(), store<Acc>(kNan));
  run(random, lighthouse::Merge<T>{.geometry = x.g,
                                   .shape = shape_of(x.c),
                                   .pieces = x.pieces,
                                   .near_out = near_out.const_rows(),
                                   .near_lse = near_lse.const_rows(),
                                   .gathered_out = gathered_out.const_rows(),
                                   .gathered_lse = gathered_lse.const_rows(),
                                   .slots = slots.data(),
                                   .out = out.rows(),
                                   .lse = lse.data(),
                                   .documents = table.documents()});
  return {out.array(), from_pieces(lse.values(), x.pieces, x.near.lse.shape)};
}

/// What each row weighs: (B, H, N) near, (B, H, S) the sum over the positions that hear it.
oracle::Attended shares(const oracle::Attended& near, const oracle::Attended& far,
                        const Array& rows, const Case& c) {
  const auto ones = [](const Array& lse) {
    return Array({lse.size(0), lse.size(1), lse.size(2), 1}, 1);
  };
  const oracle::MergeGradients grad =
      oracle::merge_adjoint({ones(near.lse), near.lse}, {ones(far.lse), far.lse}, rows, c.config,
                            ones(near.lse), c.documents);
  return {grad.near.out, grad.far.out};
}

template <class T>
void expect_the_oracles(const oracle::Attended& actual, const Branches<T>& x) {
  const oracle::Attended expected = x.merged();
  const Array of_absolute =
      oracle::merge({absolute(x.near.out), x.near.lse}, {absolute(x.far.out), x.far.lse},
                    x.maps.rows, x.c.config, x.c.documents)
          .out;
  EXPECT_TRUE(within(actual.out, expected.out,
                     linear_budget(of_absolute, 2 * x.roundings() + x.g.levels, rounding<T>())));
  Array budget = absolute(expected.lse);
  for (double& value : budget.values)
    value = accumulator(rounding<T>()).unit * (2 * value + static_cast<double>(x.roundings()));
  EXPECT_TRUE(within(actual.lse, expected.lse, budget));
}

TYPED_TEST(Merge, AgreesWithTheOracle) {
  using T = TypeParam;
  Random random(50);
  for (int i = 0; i < 40; ++i) {
    const Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    expect_the_oracles(merge(random, x), x);
  }
}

/// Masses that differ by e^1000 or are 0. What weighs nothing may hold anything.
TYPED_TEST(Merge, TakesMassesOfAnySize) {
  using T = TypeParam;
  Random random(51);
  for (int i = 0; i < 40; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    for (Array* lse : {&x.near.lse, &x.far.lse}) {
      for (double& value : lse->values) value += 1000 * static_cast<double>(draw(random, -1, 1));
      *lse = rounded<accumulator_t<T>>(*lse);
    }
    // Where nothing has a mass the result is near's, and has no log-sum-exp to compare.
    for (double& value : x.far.lse.values)
      if (draw(random, 0, 3) == 0) value = -kInfinity;
    Branches<T> poisoned = x;
    const oracle::Attended share = shares(x.near, x.far, x.maps.rows, x.c);
    for (auto [of, out] :
         {std::pair(&share.out, &poisoned.near.out), std::pair(&share.lse, &poisoned.far.out)})
      for (size_t row = 0; row < of->values.size(); ++row)
        for (int64_t d = 0; d < x.c.dim; ++d)
          if (of->values[row] == 0) out->values[row * x.c.dim + d] = d % 2 != 0 ? kNan : kInfinity;
    expect_the_oracles(merge(random, poisoned), x);
  }
}

TYPED_TEST(Merge, IsNearToTheBitWhereTheRowsWeighNothing) {
  using T = TypeParam;
  Random random(52);
  for (int i = 0; i < 20; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    for (double& lse : x.far.lse.values) lse = i % 2 == 0 ? -kInfinity : lse - 1000;
    const oracle::Attended merged = merge(random, x);
    EXPECT_TRUE(equal(merged.out, x.near.out));
    EXPECT_TRUE(equal(merged.lse, x.near.lse));
    // Nothing at all has a mass: near all the same.
    for (double& lse : x.near.lse.values) lse = -kInfinity;
    for (double& lse : x.far.lse.values) lse = -kInfinity;
    EXPECT_TRUE(equal(merge(random, x).out, x.near.out));
  }
}

TYPED_TEST(Merge, IsTheMeanOfTheRowsWhereNearWeighsNothing) {
  using T = TypeParam;
  Random random(53);
  for (int i = 0; i < 20; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const Array heard = oracle::scatter(Array({x.c.batch, x.c.heads, x.g.rows, 1}, 1), x.maps.rows,
                                        x.c.tokens, x.c.config, x.c.documents);
    for (double& lse : x.far.lse.values) lse = 0.5;
    for (size_t row = 0; row < heard.values.size(); ++row)
      if (heard.values[row] > 0) x.near.lse.values[row] = i % 2 == 0 ? -kInfinity : -1000;
    expect_the_oracles(merge(random, x), x);
    Array expected = oracle::scatter(x.far.out, x.maps.rows, x.c.tokens, x.c.config, x.c.documents);
    for (size_t at = 0; at < expected.values.size(); ++at) {
      const double count = heard.values[at / x.c.dim];
      expected.values[at] = count == 0 ? x.near.out.values[at] : expected.values[at] / count;
    }
    EXPECT_TRUE(
        within(merge(random, x).out, expected,
               linear_budget(absolute(oracle::scatter(absolute(x.far.out), x.maps.rows, x.c.tokens,
                                                      x.c.config, x.c.documents)),
                             x.roundings() + x.g.levels, rounding<T>())));
  }
}

/// NaN comes of NaN alone, at the positions that hear it, and an infinite mass is all there is.
TYPED_TEST(Merge, KeepsNanAndInfinityToThePositionsThatHearThem) {
  using T = TypeParam;
  Random random(54);
  for (int i = 0; i < 20; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const oracle::Attended plain = merge(random, x);
    const int64_t row = draw(random, 0, x.g.rows - 1);
    const int64_t position = draw(random, 0, x.c.tokens - 1);
    Array marked({x.c.batch, x.c.heads, x.g.rows, 1});
    marked(0, 0, row, 0) = 1;
    const Array hears = oracle::scatter(marked, x.maps.rows, x.c.tokens, x.c.config, x.c.documents);
    Branches<T> odd = x;
    odd.far.lse(0, 0, row) = kNan;
    odd.near.lse(0, 0, position) = kNan;
    const oracle::Attended with_nan = merge(random, odd);
    const bool position_hears_rows =
        oracle::scatter(Array({x.c.batch, x.c.heads, x.g.rows, 1}, 1), x.maps.rows, x.c.tokens,
                        x.c.config, x.c.documents)(0, 0, position, 0) > 0;
    odd.near.lse(0, 0, position) = x.near.lse(0, 0, position);
    odd.far.lse(0, 0, row) = kInfinity;
    const oracle::Attended with_infinity = merge(random, odd);
    for (int64_t b = 0; b < x.c.batch; ++b)
      for (int64_t h = 0; h < x.c.heads; ++h)
        for (int64_t j = 0; j < x.c.tokens; ++j) {
          const bool hears_it = hears(b, h, j, 0) != 0;
          const bool is_it = b == 0 && h == 0 && j == position;
          EXPECT_EQ(std::isnan(with_nan.lse(b, h, j)), hears_it || is_it);
          EXPECT_EQ(with_infinity.lse(b, h, j) == kInfinity, hears_it);
          for (int64_t d = 0; d < x.c.dim; ++d) {
            if (hears_it || (is_it && position_hears_rows)) {
              EXPECT_TRUE(std::isnan(with_nan.out(b, h, j, d)));
            } else {
              EXPECT_EQ(with_nan.out(b, h, j, d), plain.out(b, h, j, d));
            }
            EXPECT_EQ(with_infinity.out(b, h, j, d),
                      hears_it ? x.far.out(b, h, row, d) : plain.out(b, h, j, d));
          }
        }
  }
}

/// Near's rows and log-sum-exps as stock attention writes them are replaced by the merged ones.
TYPED_TEST(Merge, WorksInPlace) {
  using T = TypeParam;
  using Acc = accumulator_t<T>;
  Random random(55);
  for (int i = 0; i < 20; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    x.pieces = Pieces(x.c.tokens, x.c.tokens, 0);
    const oracle::Attended expected = merge(random, x);

    Strided<T> out(random, x.near.out);
    Buffer<Acc> lse(by_pieces<Acc>(x.near.lse, x.pieces));
    const Strided<T> gathered_out(random, x.far.out);
    const Strided<Acc> gathered_lse(random, as_rows(x.far.lse));
    const Buffer<Slot> slots(to_vector<Slot>(x.maps.slots));
    const RootTable table(x.c);
    PieceRows<const T> near_out;
    near_out.segment[Pieces::kWhole] = out.const_rows();
    PieceRows<const Acc> near_lse;
    near_lse.segment[Pieces::kWhole] = {lse.data(), x.c.heads * x.c.tokens, x.c.tokens, 1};
    run(random, lighthouse::Merge<T>{.geometry = x.g,
                                     .shape = shape_of(x.c),
                                     .pieces = x.pieces,
                                     .near_out = near_out,
                                     .near_lse = near_lse,
                                     .gathered_out = gathered_out.const_rows(),
                                     .gathered_lse = gathered_lse.const_rows(),
                                     .slots = slots.data(),
                                     .out = out.rows(),
                                     .lse = lse.data(),
                                     .documents = table.documents()});
    EXPECT_TRUE(equal(out.array(), expected.out));
    EXPECT_TRUE(equal(from_pieces(lse.values(), x.pieces, x.near.lse.shape), expected.lse));
  }
}

/// d o~ and the argument `out` of stock backward, given d out; the merged output and log-sum-exp
/// are the oracle's, rounded.
template <class T>
struct RowGradients {
  Array out;  ///< the merged output that was given
  Array grad;
  Array backward_out;
};

template <class T>
RowGradients<T> merge_backward(Random& random, const Branches<T>& x, const Array& grad_out) {
  using Acc = accumulator_t<T>;
  const oracle::Attended merged = x.merged();
  const Array merged_out = rounded<T>(merged.out);
  const Strided<T> grad(random, grad_out);
  const Strided<T> out(random, merged_out);
  const Buffer<Acc> lse(by_pieces<Acc>(merged.lse, x.pieces));
  const Strided<Acc> gathered_lse(random, as_rows(x.far.lse));
  const Buffer<int32_t> rows(to_vector<int32_t>(x.maps.rows));
  const Buffer<Slot> slots(to_vector<Slot>(x.maps.slots));
  const RootTable table(x.c);
  Strided<T> grad_gathered_out(random, x.far.out.shape);
  Strided<T> backward_out(random, x.far.out.shape);
  run(random, MergeBackward<T>{.geometry = x.g,
                               .shape = shape_of(x.c),
                               .pieces = x.pieces,
                               .grad_out = grad.const_rows(),
                               .out = out.const_rows(),
                               .lse = lse.data(),
                               .gathered_lse = gathered_lse.const_rows(),
                               .rows = rows.data(),
                               .slots = slots.data(),
                               .grad_gathered_out = grad_gathered_out.rows(),
                               .backward_out = backward_out.rows(),
                               .documents = table.documents()});
  return {merged_out, grad_gathered_out.array(), backward_out.array()};
}

double row_sum(const Array& x, const Array& y, int64_t b, int64_t h, int64_t s) {
  double sum = 0;
  for (int64_t d = 0; d < x.size(3); ++d) sum += x(b, h, s, d) * y(b, h, s, d);
  return sum;
}

/// Whether the gradients are the oracle's, and the row sums what the log-sum-exps' gradients ask
/// for: with o~ in place of the argument, stock backward would leave d lambda~ out.
template <class T>
void expect_the_oracles(const RowGradients<T>& actual, const Branches<T>& x,
                        const Array& grad_out) {
  const auto of = [&](const Array& grad) {
    return oracle::merge_adjoint(x.near, x.far, x.maps.rows, x.c.config, grad, x.c.documents).far;
  };
  const int64_t terms = x.g.root_window() + 2 * x.roundings();
  const oracle::Attended expected = of(grad_out);
  const Array sizes = of(absolute(grad_out)).out;
  EXPECT_TRUE(within(actual.grad, expected.out, linear_budget(sizes, terms, rounding<T>())));

  // The sum over positions of weight |d out . out|, by rows of one element.
  Array products({x.c.batch, x.c.heads, x.c.tokens, 1});
  Array inner(products.shape);
  for (int64_t b = 0; b < x.c.batch; ++b)
    for (int64_t h = 0; h < x.c.heads; ++h)
      for (int64_t j = 0; j < x.c.tokens; ++j) {
        inner(b, h, j, 0) = row_sum(grad_out, actual.out, b, h, j);
        products(b, h, j, 0) = row_sum(absolute(grad_out), absolute(actual.out), b, h, j);
      }
  const oracle::Attended scalar_near{Array(inner.shape), x.near.lse};
  const oracle::Attended scalar_far{Array({x.c.batch, x.c.heads, x.g.rows, 1}), x.far.lse};
  const auto sum = [&](const Array& of_position) {
    return oracle::merge_adjoint(scalar_near, scalar_far, x.maps.rows, x.c.config, of_position,
                                 x.c.documents)
        .far.out;
  };
  const Array expected_sum = sum(inner);
  const Array size_of_sum = sum(products);
  for (int64_t b = 0; b < x.c.batch; ++b)
    for (int64_t h = 0; h < x.c.heads; ++h)
      for (int64_t s = 0; s < x.g.rows; ++s) {
        const double square = row_sum(actual.grad, actual.grad, b, h, s);
        const double largest_out = std::abs(expected_sum(b, h, s, 0)) / std::sqrt(square);
        if (square == 0) {
          EXPECT_EQ(row_sum(actual.backward_out, actual.backward_out, b, h, s), 0);
          continue;
        }
        if (largest_out >= static_cast<double>(kLargest<T>)) continue;
        const Rounding type = rounding<T>();
        double absolute_sum = 0;
        for (int64_t d = 0; d < x.c.dim; ++d) absolute_sum += std::abs(actual.grad(b, h, s, d));
        const double budget =
            2 * (static_cast<double>(terms + x.c.dim) * accumulator(type).unit *
                     size_of_sum(b, h, s, 0) +
                 type.unit * std::abs(expected_sum(b, h, s, 0)) + type.quantum * absolute_sum);
        EXPECT_NEAR(row_sum(actual.grad, actual.backward_out, b, h, s), expected_sum(b, h, s, 0),
                    budget);
      }
}

TYPED_TEST(Merge, BackwardAgreesWithTheOracle) {
  using T = TypeParam;
  Random random(56);
  for (int i = 0; i < 20; ++i) {
    const Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const Array grad_out = rounded<T>(normals(random, x.c.q_shape()));
    expect_the_oracles(merge_backward(random, x, grad_out), x, grad_out);
  }
}

/// With its own output as the argument stock backward would leave out the gradient of the row's
/// log-sum-exp: the row sums differ by it.
TEST(MergeBackward, CarriesTheGradientOfTheLogSumExp) {
  Random random(57);
  for (int i = 0; i < 20; ++i) {
    const Branches<double> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const Array grad_out = normals(random, x.c.q_shape());
    const RowGradients<double> actual = merge_backward(random, x, grad_out);
    const oracle::Attended far =
        oracle::merge_adjoint(x.near, x.far, x.maps.rows, x.c.config, grad_out, x.c.documents).far;
    for (int64_t b = 0; b < x.c.batch; ++b)
      for (int64_t h = 0; h < x.c.heads; ++h)
        for (int64_t s = 0; s < x.g.rows; ++s) {
          EXPECT_NEAR(row_sum(actual.grad, x.far.out, b, h, s) -
                          row_sum(actual.grad, actual.backward_out, b, h, s),
                      far.lse(b, h, s), 1e-12 * static_cast<double>(x.g.root_window()));
        }
  }
}

/// Masses that differ by e^1000 or are 0, and gradients whose squares are no numbers of T.
TYPED_TEST(Merge, BackwardTakesMassesAndGradientsOfAnySize) {
  using T = TypeParam;
  Random random(58);
  for (int i = 0; i < 20; ++i) {
    Branches<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    for (Array* lse : {&x.near.lse, &x.far.lse}) {
      for (double& value : lse->values) value += 1000 * static_cast<double>(draw(random, -1, 1));
      *lse = rounded<accumulator_t<T>>(*lse);
    }
    for (double& value : x.far.lse.values)
      if (draw(random, 0, 3) == 0) value = -kInfinity;
    Array grad_out = normals(random, x.c.q_shape());
    const double size = i % 3 == 0 ? 1e-30 : i % 3 == 1 ? 1e-24 : 1e2;
    for (double& value : grad_out.values) value *= size;
    grad_out = rounded<T>(grad_out);
    expect_the_oracles(merge_backward(random, x, grad_out), x, grad_out);
  }
}

TYPED_TEST(Merge, BackwardBoundsWhatStockBackwardTakes) {
  using T = TypeParam;
  Random random(59);
  // A root of two tokens is heard by 1 and 2, whose gradients all but cancel.
  Case c;
  c.config.levels = 2;
  c.config.pooling_factor = 2;
  c.config.budget = c.config.tile_budget = 1;
  c.tokens = 3;
  Branches<T> x(random, c);
  for (double& lse : x.near.lse.values) lse = 0;
  for (double& lse : x.far.lse.values) lse = 0;
  for (double& value : x.near.out.values) value = 0;
  for (double& value : x.far.out.values) value = 0;
  for (const int64_t j : {1, 2}) x.near.out(0, 0, j, 0) = j == 1 ? 60000 : -60000;
  Array grad_out(x.c.q_shape());
  grad_out(0, 0, 1, 0) = 2;
  grad_out(0, 0, 2, 0) = -2 * (1 + 2 * rounding<T>().unit);
  grad_out = rounded<T>(grad_out);
  const RowGradients<T> actual = merge_backward(random, x, grad_out);
  for (const double value : actual.backward_out.values) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_LE(std::abs(value), static_cast<double>(kLargest<T>));
  }
  if (std::is_same_v<T, Float16>) {
    EXPECT_EQ(largest(actual.backward_out), static_cast<double>(kLargest<T>));
  }
}

}  // namespace
}  // namespace lighthouse::testing
