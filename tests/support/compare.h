#pragma once

#include <gtest/gtest.h>

#include "tests/support/array.h"

namespace lighthouse::testing {

/// max|actual - reference| / max|reference|: 0 where they are equal, infinity where the reference
/// alone is all zeros, NaN where a value is NaN. The shapes must be equal.
double relative_error(const Array& actual, const Array& reference);

/// Succeeds where the shapes are equal and the relative error is at most `tolerance`: fails on NaN
/// and on infinity in either. The message says where the difference is largest.
::testing::AssertionResult close(const Array& actual, const Array& reference, double tolerance);

/// Succeeds where the shapes are equal and no element is further from its reference than its own
/// `budget` (absolute, of the same shape). Fails on NaN and infinity likewise.
::testing::AssertionResult within(const Array& actual, const Array& reference, const Array& budget);

/// Succeeds where shapes and values are equal: for integers, and for values that must agree bit for
/// bit (but -0 equals 0). Fails on NaN.
::testing::AssertionResult equal(const Array& actual, const Array& reference);

}  // namespace lighthouse::testing
