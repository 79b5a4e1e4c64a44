#include "lighthouse/kernels/scatter.h"

#include "tests/kernels/support.h"

namespace lighthouse::testing {
namespace {

template <class T>
class Scatter : public ::testing::Test {};
TYPED_TEST_SUITE(Scatter, AllTypes);

TYPED_TEST(Scatter, AgreesWithTheOracle) {
  using T = TypeParam;
  Random random(40);
  for (int i = 0; i < 100; ++i) {
    const Case c = kernel_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    const oracle::Maps maps = random_maps(random, c);
    const Buffer<Slot> slots(to_vector<Slot>(maps.slots));
    const Array gathered = rounded<T>(normals(random, {c.batch, c.heads, g.rows, c.dim}));
    const Strided<T> from(random, gathered);
    Strided<T> to(random, c.q_shape());
    const lighthouse::Scatter<T> args{g, shape_of(c), from.const_rows(), slots.data(), to.rows()};
    run(random, args);
    const auto scatter = [&](const Array& array) {
      return oracle::scatter(array, maps.rows, c.tokens, c.config);
    };
    EXPECT_TRUE(within(to.array(), scatter(gathered),
                       linear_budget(scatter(absolute(gathered)), g.levels, rounding<T>())));
  }
}

TYPED_TEST(Scatter, BackwardAgreesWithTheOracle) {
  using T = TypeParam;
  Random random(41);
  for (int i = 0; i < 100; ++i) {
    const Case c = kernel_case(random);
    SCOPED_TRACE(::testing::PrintToString(c));
    const Geometry g(c.tokens, c.config);
    const Array rows = random_maps(random, c).rows;
    const Buffer<int32_t> row_ids(to_vector<int32_t>(rows));
    const Array grad = rounded<T>(normals(random, c.q_shape()));
    const Strided<T> from(random, grad);
    Strided<T> to(random, {c.batch, c.heads, g.rows, c.dim});
    const ScatterBackward<T> args{g, shape_of(c), from.const_rows(), row_ids.data(), to.rows()};
    run(random, args);
    const auto adjoint = [&](const Array& array) {
      return oracle::scatter_adjoint(array, rows, c.config);
    };
    EXPECT_TRUE(within(to.array(), adjoint(grad),
                       linear_budget(adjoint(absolute(grad)), g.root_window(), rounding<T>())));
  }
}

}  // namespace
}  // namespace lighthouse::testing
