#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "lighthouse/core/dtype.h"
#include "lighthouse/kernels/tensor_view.h"
#include "tests/support/cases.h"
#include "tests/support/compare.h"

namespace lighthouse::testing {

using AllTypes = ::testing::Types<float, double, BFloat16, Float16>;

template <class T>
constexpr Rounding rounding() {
  if constexpr (std::is_same_v<T, double>) return kFloat64;
  if constexpr (std::is_same_v<T, float>) return kFloat32;
  if constexpr (std::is_same_v<T, BFloat16>) return kBFloat16;
  if constexpr (std::is_same_v<T, Float16>) return kFloat16;
}

template <class T>
T store(double value) {
  if constexpr (std::is_same_v<T, double>) return value;
  return T(static_cast<float>(value));
}

template <class T>
double load(T value) {
  return static_cast<double>(static_cast<accumulator_t<T>>(value));
}

/// The nearest values of T: inputs must be the same on both sides.
template <class T>
Array rounded(Array array) {
  for (double& value : array.values) value = load(store<T>(value));
  return array;
}

template <class T>
oracle::Qkv rounded(oracle::Qkv x) {
  return {rounded<T>(std::move(x.q)), rounded<T>(std::move(x.k)), rounded<T>(std::move(x.v))};
}

inline Shape shape_of(const Case& c) { return {c.batch, c.heads, c.groups, c.dim}; }

template <class T>
Array to_array(const std::vector<T>& values, std::vector<int64_t> shape) {
  Array array(std::move(shape));
  EXPECT_EQ(array.values.size(), values.size());
  std::transform(values.begin(), values.end(), array.values.begin(), load<T>);
  return array;
}

inline Array to_array(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  Array array(std::move(shape));
  EXPECT_EQ(array.values.size(), values.size());
  array.values.assign(values.begin(), values.end());
  return array;
}

template <class To>
std::vector<To> to_vector(const Array& array) {
  std::vector<To> result;
  for (const double value : array.values) result.push_back(static_cast<To>(value));
  return result;
}

/// A (B, H, N, D) array in a layout drawn at random: heads or tokens first, with gaps between the
/// rows. Gaps and, at first, elements hold a NaN, so that what is not written shows, and what
/// is written beside it.
template <class T>
class Strided {
 public:
  Strided(Random& random, std::vector<int64_t> shape) : shape_(std::move(shape)) {
    const int64_t row = shape_[3] + draw(random, 0, 3);
    const bool heads_first = draw(random, 0, 1) != 0;
    rows_.head_stride = heads_first ? shape_[2] * row : row;
    rows_.row_stride = heads_first ? row : shape_[1] * row;
    rows_.batch_stride = shape_[1] * shape_[2] * row;
    data_.assign(shape_[0] * rows_.batch_stride, garbage());
    rows_.data = data_.data();
  }
  Strided(Random& random, const Array& array) : Strided(random, array.shape) {
    size_t next = 0;
    for_each([&](T& element) { element = store<T>(array.values[next++]); });
  }
  Strided(const Strided&) = delete;
  Strided& operator=(const Strided&) = delete;

  Rows<T> rows() const { return rows_; }
  Rows<const T> const_rows() const {
    return {rows_.data, rows_.batch_stride, rows_.head_stride, rows_.row_stride};
  }

  /// The elements; fails where a gap was written to.
  Array array() {
    Array result(shape_);
    size_t next = 0;
    for_each([&](T& element) {
      result.values[next++] = load(element);
      element = garbage();
    });
    for (const T value : data_) EXPECT_TRUE(std::isnan(load(value))) << "a gap was written to";
    return result;
  }

 private:
  static T garbage() { return store<T>(std::numeric_limits<double>::quiet_NaN()); }

  template <class F>
  void for_each(const F& f) {
    for (int64_t b = 0; b < shape_[0]; ++b)
      for (int64_t h = 0; h < shape_[1]; ++h)
        for (int64_t n = 0; n < shape_[2]; ++n)
          for (int64_t d = 0; d < shape_[3]; ++d) f(rows_.at(b, h, n)[d]);
  }

  std::vector<int64_t> shape_;
  std::vector<T> data_;
  Rows<T> rows_;
};

/// Calls kernel(begin, end) for pieces of [0, items) in an order drawn at random: work items must
/// not depend on each other.
template <class Kernel>
void in_pieces(Random& random, int64_t items, const Kernel& kernel) {
  std::vector<int64_t> cuts{0, items};
  for (int64_t i = draw(random, 0, 3); i > 0; --i) cuts.push_back(draw(random, 0, items));
  std::sort(cuts.begin(), cuts.end());
  std::vector<size_t> order(cuts.size() - 1);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), random);
  for (const size_t i : order) kernel(cuts[i], cuts[i + 1]);
}

/// A selection by scores drawn at random.
inline oracle::Maps random_maps(Random& random, const Case& c) {
  const int64_t coarse = Geometry(c.tokens, c.config).coarse_entries();
  return oracle::select(
      {normals(random, {c.batch, c.groups, coarse}), normals(random, {c.batch, c.groups, coarse})},
      c.tokens, c.config);
}

}  // namespace lighthouse::testing
