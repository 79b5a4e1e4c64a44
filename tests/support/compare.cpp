#include "tests/support/compare.h"

#include <cmath>
#include <limits>
#include <string>

namespace lighthouse::testing {
namespace {

std::string print(const std::vector<int64_t>& list) { return ::testing::PrintToString(list); }

/// The multi-dimensional index of a place in `values`.
std::string print_place(const Array& array, size_t place) {
  std::vector<int64_t> index(array.shape.size());
  auto rest = static_cast<int64_t>(place);
  for (size_t d = index.size(); d-- > 0; rest /= array.shape[d]) index[d] = rest % array.shape[d];
  return print(index);
}

struct Difference {
  double largest = 0;    ///< NaN where there is one
  size_t place = 0;      ///< where it is
  double reference = 0;  ///< the largest absolute value of the reference
};

Difference difference(const Array& actual, const Array& reference) {
  Difference result;
  for (size_t i = 0; i < reference.values.size(); ++i) {
    const double here = std::abs(actual.values[i] - reference.values[i]);
    if (!(here <= result.largest)) {
      result.largest = here;
      result.place = i;
      if (std::isnan(here)) return result;
    }
    result.reference = std::max(result.reference, std::abs(reference.values[i]));
  }
  return result;
}

double quotient(const Difference& d) { return d.largest == 0 ? 0 : d.largest / d.reference; }

::testing::AssertionResult check(const Array& actual, const Array& reference, double tolerance) {
  if (actual.shape != reference.shape) {
    return ::testing::AssertionFailure()
           << "the shape is " << print(actual.shape) << ", not " << print(reference.shape);
  }
  const Difference d = difference(actual, reference);
  const double error = quotient(d);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "the relative error is " << error << ", over " << tolerance << "; at "
         << print_place(reference, d.place) << ": " << actual.values[d.place] << ", not "
         << reference.values[d.place];
}

}  // namespace

double relative_error(const Array& actual, const Array& reference) {
  if (actual.shape != reference.shape) return std::numeric_limits<double>::quiet_NaN();
  return quotient(difference(actual, reference));
}

::testing::AssertionResult close(const Array& actual, const Array& reference, double tolerance) {
  return check(actual, reference, tolerance);
}

::testing::AssertionResult within(const Array& actual, const Array& reference,
                                  const Array& budget) {
  if (actual.shape != reference.shape || budget.shape != reference.shape) {
    return ::testing::AssertionFailure()
           << "the shape is " << print(actual.shape) << ", not " << print(reference.shape)
           << "; that of the budget is " << print(budget.shape);
  }
  for (size_t i = 0; i < reference.values.size(); ++i) {
    const double error = std::abs(actual.values[i] - reference.values[i]);
    if (!(error <= budget.values[i])) {
      return ::testing::AssertionFailure()
             << "at " << print_place(reference, i) << ": " << actual.values[i] << ", not "
             << reference.values[i] << "; the difference is " << error << ", over "
             << budget.values[i];
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult equal(const Array& actual, const Array& reference) {
  return check(actual, reference, 0);
}

}  // namespace lighthouse::testing
