#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace lighthouse::testing {

/// A dense array of float64, row-major: what the oracle computes with and the comparators compare.
struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values;

  Array() = default;
  explicit Array(std::vector<int64_t> sizes, double fill = 0)
      : shape(std::move(sizes)), values(count(shape), fill) {}

  template <class... Index>
  double& operator()(Index... index) {
    return values[place({static_cast<int64_t>(index)...})];
  }
  template <class... Index>
  double operator()(Index... index) const {
    return values[place({static_cast<int64_t>(index)...})];
  }
  int64_t size(size_t dimension) const { return shape.at(dimension); }

 private:
  static size_t count(const std::vector<int64_t>& shape) {
    return static_cast<size_t>(
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
  }
  size_t place(std::initializer_list<int64_t> index) const {
    int64_t place = 0;
    size_t dimension = 0;
    for (const int64_t i : index) place = place * shape.at(dimension++) + i;
    return static_cast<size_t>(place);
  }
};

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Random = std::mt19937_64;

/// A uniform integer in [least, most].
inline int64_t draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

/// Independent standard normals.
inline Array normals(Random& random, std::vector<int64_t> shape) {
  Array array(std::move(shape));
  std::normal_distribution<double> normal;
  for (double& value : array.values) value = normal(random);
  return array;
}

}  // namespace lighthouse::testing
