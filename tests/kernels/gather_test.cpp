#include "lighthouse/kernels/gather.h"

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
    const Case c = kernel_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
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
    const lighthouse::Gather<T> args{g,
                                     shape_of(c),
                                     q.const_rows(),
                                     k.const_rows(),
                                     v.const_rows(),
                                     root_rows.data(),
                                     row_ids.data(),
                                     gathered_q.rows(),
                                     gathered_k.rows(),
                                     gathered_v.rows()};
    run(random, args);

    int64_t column = 0;
    for (const auto& [from, to] : {std::pair(&x.q, &gathered_q), std::pair(&x.k, &gathered_k),
                                   std::pair(&x.v, &gathered_v)}) {
      Array expected = oracle::gather(*from, rows, c.config);
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
                         linear_budget(oracle::gather(absolute(*from), rows, c.config),
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
  run(random,
      lighthouse::Gather<T>{g, shape_of(c), in, in, in, nullptr, rows.data(), out, out, out});
  EXPECT_TRUE(equal(to.array(), x));
}

TYPED_TEST(Gather, BackwardAgreesWithTheOracle) {
  using T = TypeParam;
  Random random(32);
  for (int i = 0; i < 100; ++i) {
    const Case c = kernel_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    const oracle::Maps maps = random_maps(random, c);
    const Buffer<Slot> slots(to_vector<Slot>(maps.slots));
    const auto grad_of = [&](int64_t heads) {
      return rounded<T>(normals(random, {c.batch, heads, g.rows, c.dim}));
    };
    const oracle::Qkv grad{grad_of(c.heads), grad_of(c.groups), grad_of(c.groups)};
    const Strided<T> gathered_q(random, grad.q);
    const Strided<T> gathered_k(random, grad.k);
    const Strided<T> gathered_v(random, grad.v);
    Strided<T> grad_q(random, c.q_shape());
    Strided<T> grad_k(random, c.kv_shape());
    Strided<T> grad_v(random, c.kv_shape());
    const GatherBackward<T> args{g,
                                 shape_of(c),
                                 gathered_q.const_rows(),
                                 gathered_k.const_rows(),
                                 gathered_v.const_rows(),
                                 slots.data(),
                                 grad_q.rows(),
                                 grad_k.rows(),
                                 grad_v.rows()};
    run(random, args);
    for (const auto& [from, to] :
         {std::pair(&grad.q, &grad_q), std::pair(&grad.k, &grad_k), std::pair(&grad.v, &grad_v)}) {
      const auto adjoint = [&](const Array& array) {
        return oracle::gather_adjoint(array, maps.rows, c.tokens, c.config);
      };
      EXPECT_TRUE(within(to->array(), adjoint(*from),
                         linear_budget(adjoint(absolute(*from)), g.levels, rounding<T>())));
    }
  }
}

}  // namespace
}  // namespace lighthouse::testing
