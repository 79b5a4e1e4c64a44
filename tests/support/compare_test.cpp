#include "tests/support/compare.h"

#include <cmath>

namespace lighthouse::testing {
namespace {

Array of(std::vector<double> values) {
  Array array({static_cast<int64_t>(values.size())});
  array.values = std::move(values);
  return array;
}

TEST(Compare, AcceptsWhatIsWithinTheTolerance) {
  EXPECT_TRUE(close(of({1, -10.05}), of({1, -10}), 0.0051));
  EXPECT_TRUE(close(of({1, -10}), of({1, -10}), 0));
  EXPECT_TRUE(equal(of({3, -0.0}), of({3, 0.0})));
  EXPECT_DOUBLE_EQ(relative_error(of({1, -11}), of({2, -10})), 0.1);
}

TEST(Compare, RefusesWhatIsNot) {
  EXPECT_FALSE(close(of({1, -10.05}), of({1, -10}), 0.0049));
  EXPECT_FALSE(equal(of({1, 2}), of({1, 3})));
  EXPECT_FALSE(equal(of({1, std::nextafter(2, 3)}), of({1, 2})));
}

TEST(Compare, RefusesNan) {
  EXPECT_FALSE(close(of({1, kNan}), of({1, 2}), 1e9));
  EXPECT_FALSE(close(of({1, 2}), of({1, kNan}), 1e9));
  EXPECT_FALSE(close(of({kNan, 2}), of({kNan, 2}), 1e9));
  EXPECT_FALSE(equal(of({kNan}), of({kNan})));
  EXPECT_TRUE(std::isnan(relative_error(of({kNan, 9}), of({1, 2}))));
}

TEST(Compare, RefusesInfinity) {
  EXPECT_FALSE(close(of({1, kInfinity}), of({1, 2}), 1e9));
  EXPECT_FALSE(close(of({1, 2}), of({1, kInfinity}), 1e9));
  EXPECT_FALSE(close(of({kInfinity}), of({kInfinity}), 1e9));
}

TEST(Compare, RefusesAWrongSign) {
  EXPECT_FALSE(close(of({-10}), of({10}), 1));
  EXPECT_FALSE(close(of({10}), of({-10}), 1));
  EXPECT_FALSE(close(of({-5}), of({-10}), 0.1));
}

TEST(Compare, RefusesAnotherShape) {
  Array row({1, 2});
  Array column({2, 1});
  EXPECT_FALSE(close(row, column, 1));
  EXPECT_FALSE(equal(row, column));
  EXPECT_FALSE(close(of({0}), of({0, 0}), 1));
  EXPECT_FALSE(close(of({}), of({0}), 1));
}

TEST(Compare, AReferenceOfZerosLeavesNoRoom) {
  EXPECT_TRUE(close(of({0, -0.0}), of({0, 0}), 0));
  EXPECT_FALSE(close(of({0, 1e-300}), of({0, 0}), 1e9));
}

TEST(Compare, WithinHasABudgetForEachElement) {
  EXPECT_TRUE(within(of({1, 20}), of({1.5, 10}), of({0.5, 10})));
  EXPECT_FALSE(within(of({1, 20}), of({1.5, 10}), of({0.4, 10})));
  EXPECT_FALSE(within(of({-1}), of({1}), of({1})));
  EXPECT_FALSE(within(of({kNan}), of({1}), of({1})));
  EXPECT_FALSE(within(of({1}), of({kNan}), of({1})));
  EXPECT_FALSE(within(of({1}), of({1}), of({kNan})));
  EXPECT_FALSE(within(of({kInfinity}), of({kInfinity}), of({1})));
  EXPECT_FALSE(within(of({1}), of({1, 1}), of({1})));
  EXPECT_FALSE(within(of({1}), of({1}), of({1, 1})));
}

TEST(Compare, SaysWhereItIsLargest) {
  Array reference({2, 3}, 1);
  Array actual = reference;
  actual(1, 0) = 1.5;
  actual(1, 2) = 3;
  EXPECT_NE(std::string(close(actual, reference, 0.1).message()).find("{ 1, 2 }: 3, not 1"),
            std::string::npos);
}

}  // namespace
}  // namespace lighthouse::testing
