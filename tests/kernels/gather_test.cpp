#include "lighthouse/kernels/gather.h"

#include <functional>
#include <optional>

#include "tests/kernels/support.h"

namespace lighthouse::testing {
namespace {

template <class T>
class Gather : public ::testing::Test {};
TYPED_TEST_SUITE(Gather, AllTypes);

TYPED_TEST(Gather, AgreesWithTheOracle) {
  using T = TypeParam;
  Random random(30);
  for (int i = 0; i < 100; ++i) {
    const Case c = packed_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g = geometry_of(c);
    const RootTable table(c);
    const oracle::Qkv x = rounded<T>(random_qkv(random, c));
    const Array rows = random_maps(random, c).rows;
    const Buffer<int32_t> row_ids(to_vector<int32_t>(rows));
    // Roots are copied, whatever they are.
    const Array roots =
        rounded<T>(normals(random, {c.batch, g.roots, c.heads + 2 * c.groups, c.dim}));
    std::vector<T> stored;
    for (const double value : roots.values) stored.push_back(store<T>(value));
    const Buffer<T> root_rows(stored);
    const Strided<T> q(random, x.q);
    const Strided<T> k(random, x.k);
    const Strided<T> v(random, x.v);
    Strided<T> gathered_q(random, {c.batch, c.heads, g.rows, c.dim});
    Strided<T> gathered_k(random, {c.batch, c.groups, g.rows, c.dim});
    Strided<T> gathered_v(random, {c.batch, c.groups, g.rows, c.dim});
    run(random, lighthouse::Gather<T>{.geometry = g,
                                      .shape = shape_of(c),
                                      .q = q.const_rows(),
                                      .k = k.const_rows(),
                                      .v = v.const_rows(),
                                      .roots = root_rows.data(),
                                      .rows = row_ids.data(),
                                      .gathered_q = gathered_q.rows(),
                                      .gathered_k = gathered_k.rows(),
                                      .gathered_v = gathered_v.rows(),
                                      .documents = table.documents()});

    int64_t column = 0;
    for (const auto& [from, to] : {std::pair(&x.q, &gathered_q), std::pair(&x.k, &gathered_k),
                                   std::pair(&x.v, &gathered_v)}) {
      Array expected = oracle::gather(*from, rows, c.config, c.documents);
      const int64_t heads = from->size(1);
      for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t s = 0; s < g.rows; ++s) {
            const auto id = static_cast<int64_t>(rows(b, h / (heads / c.groups), s));
            if (g.levels == 1 || g.level(id) != g.root_level()) continue;
            for (int64_t d = 0; d < c.dim; ++d)
              expected(b, h, s, d) = roots(b, id - g.first[g.root_level()], column + h, d);
          }
      column += heads;
      EXPECT_TRUE(within(to->array(), expected,
                         linear_budget(oracle::gather(absolute(*from), rows, c.config, c.documents),
                                       g.root_window(), rounding<T>())));
    }
  }
}

TYPED_TEST(Gather, CopiesTokensBitForBit) {
  using T = TypeParam;
  Random random(31);
  Case c;
  c.config.levels = 1;
  c.config.budget = c.config.tile_budget = 1;
  c.tokens = 17;
  c.dim = 5;
  const Geometry g(c.tokens, c.config);
  const Array x = rounded<T>(normals(random, c.q_shape()));
  const Strided<T> from(random, x);
  Strided<T> to(random, c.q_shape());
  std::vector<int32_t> all(c.tokens);
  std::iota(all.begin(), all.end(), 0);
  const Buffer<int32_t> rows(all);
  const Rows<const T> in = from.const_rows();
  const Rows<T> out = to.rows();
  run(random, lighthouse::Gather<T>{.geometry = g,
                                    .shape = shape_of(c),
                                    .q = in,
                                    .k = in,
                                    .v = in,
                                    .roots = nullptr,
                                    .rows = rows.data(),
                                    .gathered_q = out,
                                    .gathered_k = out,
                                    .gathered_v = out});
  EXPECT_TRUE(equal(to.array(), x));
}

/// What the backward pass of gather is run on.
template <class T>
struct BackwardProblem {
  Case c;
  Geometry g;
  oracle::Maps maps;
  oracle::Qkv grad;  ///< of the gathered rows

  explicit BackwardProblem(Random& random)
      : c(packed_case(random)),
        g(geometry_of(c)),
        maps(random_maps(random, c)),
        grad{rows_of(random, c.heads), rows_of(random, c.groups), rows_of(random, c.groups)} {}

  Array adjoint(const Array& of_rows) const {
    return oracle::gather_adjoint(of_rows, maps.rows, c.tokens, c.config, c.documents);
  }

  /// Runs the kernel; to pieces' gradients, of the shapes of q, k and v, where there are any.
  oracle::Qkv run(Random& random, const Pieces& pieces = {}, const oracle::Qkv& near = {},
                  bool in_place = false) const {
    const Buffer<Slot> slots(to_vector<Slot>(maps.slots));
    const RootTable table(c);
    const Strided<T> gathered_q(random, grad.q);
    const Strided<T> gathered_k(random, grad.k);
    const Strided<T> gathered_v(random, grad.v);
    const bool adds = pieces.tokens > 0;
    Strided<T> grad_q = in_place ? Strided<T>(random, near.q) : Strided<T>(random, c.q_shape());
    Strided<T> grad_k = in_place ? Strided<T>(random, near.k) : Strided<T>(random, c.kv_shape());
    Strided<T> grad_v = in_place ? Strided<T>(random, near.v) : Strided<T>(random, c.kv_shape());
    GatherBackward<T> args{.geometry = g,
                           .shape = shape_of(c),
                           .grad_gathered_q = gathered_q.const_rows(),
                           .grad_gathered_k = gathered_k.const_rows(),
                           .grad_gathered_v = gathered_v.const_rows(),
                           .slots = slots.data(),
                           .grad_q = grad_q.rows(),
                           .grad_k = grad_k.rows(),
                           .grad_v = grad_v.rows(),
                           .documents = table.documents()};
    std::optional<Segments<T>> near_q, near_k, near_v;
    if (in_place) {
      args.near.pieces = pieces;
      args.near.q.segment[Pieces::kWhole] = grad_q.const_rows();
      args.near.k.segment[Pieces::kWhole] = grad_k.const_rows();
      args.near.v.segment[Pieces::kWhole] = grad_v.const_rows();
    } else if (adds) {
      near_q.emplace(random, pieces, near.q);
      near_k.emplace(random, pieces, near.k);
      near_v.emplace(random, pieces, near.v);
      args.near = {pieces, near_q->const_rows(), near_k->const_rows(), near_v->const_rows()};
    }
    testing::run(random, args);
    return {grad_q.array(), grad_k.array(), grad_v.array()};
  }

 private:
  Array rows_of(Random& random, int64_t heads) const {
    return rounded<T>(normals(random, {c.batch, heads, g.rows, c.dim}));
  }
};

TYPED_TEST(Gather, BackwardAgreesWithTheOracle) {
  using T = TypeParam;
  Random random(32);
  for (int i = 0; i < 100; ++i) {
    const BackwardProblem<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const oracle::Qkv actual = x.run(random);
    for (const auto& [of_rows, of_tokens] :
         {std::pair(&x.grad.q, &actual.q), std::pair(&x.grad.k, &actual.k),
          std::pair(&x.grad.v, &actual.v)}) {
      EXPECT_TRUE(within(*of_tokens, x.adjoint(*of_rows),
                         linear_budget(x.adjoint(absolute(*of_rows)), x.g.levels, rounding<T>())));
    }
  }
}

TYPED_TEST(Gather, BackwardAddsToTheGradientsOfPieces) {
  using T = TypeParam;
  Random random(33);
  for (int i = 0; i < 40; ++i) {
    const BackwardProblem<T> x(random);
    SCOPED_TRACE(::testing::PrintToString(x.c));
    const oracle::Qkv near{rounded<T>(normals(random, x.c.q_shape())),
                           rounded<T>(normals(random, x.c.kv_shape())),
                           rounded<T>(normals(random, x.c.kv_shape()))};
    const oracle::Qkv actual = x.run(random, random_pieces(random, x.c.tokens), near);
    const auto sum = [](Array a, const Array& b) {
      std::transform(a.values.begin(), a.values.end(), b.values.begin(), a.values.begin(),
                     std::plus<>());
      return a;
    };
    for (const auto& [of_rows, of_near, of_tokens] :
         {std::tuple(&x.grad.q, &near.q, &actual.q), std::tuple(&x.grad.k, &near.k, &actual.k),
          std::tuple(&x.grad.v, &near.v, &actual.v)}) {
      EXPECT_TRUE(within(*of_tokens, sum(x.adjoint(*of_rows), *of_near),
                         linear_budget(sum(x.adjoint(absolute(*of_rows)), absolute(*of_near)),
                                       x.g.levels + 1, rounding<T>())));
    }
    const oracle::Qkv in_place =
        x.run(random, Pieces(x.c.tokens, x.c.tokens, 0), near, /*in_place=*/true);
    EXPECT_TRUE(equal(in_place.q, actual.q));
    EXPECT_TRUE(equal(in_place.k, actual.k));
    EXPECT_TRUE(equal(in_place.v, actual.v));
  }
}

}  // namespace
}  // namespace lighthouse::testing
