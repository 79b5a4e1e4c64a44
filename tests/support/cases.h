#pragma once

#include <algorithm>
#include <cmath>
#include <ostream>

#include "lighthouse/core/config.h"
#include "lighthouse/core/settings.h"
#include "tests/support/array.h"
#include "tests/support/oracle.h"

namespace lighthouse::testing {

/// A problem: settings and shapes.
struct Case {
  Config config;
  int64_t tokens = 1;
  int64_t batch = 1;
  int64_t heads = 1;
  int64_t groups = 1;
  int64_t dim = 1;
  oracle::Documents documents = {};

  std::vector<int64_t> q_shape() const { return {batch, heads, tokens, dim}; }
  std::vector<int64_t> kv_shape() const { return {batch, groups, tokens, dim}; }
};

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  for (const auto& row : c.documents.starts) {
    out << "documents, of " << c.documents.most << ",";
    for (const int64_t start : row) out << ' ' << start;
    out << "; ";
  }
  return out << "N " << c.tokens << ", B " << c.batch << ", H " << c.heads << ", G " << c.groups
             << ", D " << c.dim << ", " << describe(c.config);
}

/// A small problem of any kind: 1 to 5 levels, pooling by 2 to 8, tokens off every boundary and
/// below one root's window, odd tile budgets, tiles with fewer candidates than that, grouped
/// queries, both rules. The oracle takes some milliseconds for it.
inline Case random_case(Random& random) {
  Case c;
  c.config.levels = draw(random, 1, 5);
  c.config.pooling_factor = draw(random, 2, 8);
  c.config.selection = draw(random, 0, 1) ? SelectionRule::kCausal : SelectionRule::kPublished;
  c.tokens = draw(random, 1, draw(random, 0, 3) ? 150 : 12);
  const auto window = static_cast<int64_t>(std::pow(c.config.pooling_factor, c.config.levels - 1));
  const int64_t roots = (c.tokens + window - 1) / window;
  const int64_t tiles = draw(random, 1, std::min<int64_t>(roots, 5));
  c.config.tile_budget = draw(random, 1, 5);
  c.config.budget = tiles * c.config.tile_budget;
  c.config.dilation = draw(random, 1, 5);
  c.batch = draw(random, 1, 2);
  c.groups = draw(random, 1, 2);
  c.heads = c.groups * draw(random, 1, 2);
  c.dim = draw(random, 1, 20);
  return c;
}

/// q, k and v of a case: standard normals, or, for ties in the scores, signs alone.
inline oracle::Qkv random_qkv(Random& random, const Case& c) {
  oracle::Qkv x{normals(random, c.q_shape()), normals(random, c.kv_shape()),
                normals(random, c.kv_shape())};
  if (draw(random, 0, 3) == 0) {
    for (Array* array : {&x.q, &x.k})
      for (double& value : array->values) value = value < 0 ? -1 : 1;
  }
  return x;
}

/// Documents of any length, from one token to all of them, in each row of a batch; often fewer than
/// a row may have, and sometimes more may be than there are tokens.
inline oracle::Documents random_documents(Random& random, int64_t batch, int64_t tokens) {
  oracle::Documents documents;
  documents.most = draw(random, 1, draw(random, 0, 3) ? 5 : tokens + 3);
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<int64_t> starts{0};
    for (int64_t d = draw(random, 1, documents.most); d > 1; --d)
      starts.push_back(draw(random, 0, tokens - 1));
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    documents.starts.push_back(starts);
  }
  return documents;
}

inline Array absolute(Array array) {
  for (double& value : array.values) value = std::abs(value);
  return array;
}

inline double largest(const Array& array) {
  const Array positive = absolute(array);
  return *std::max_element(positive.values.begin(), positive.values.end());
}

/// How a floating-point type rounds: a result x is off by at most unit |x| + quantum.
struct Rounding {
  double unit;
  double quantum;  ///< half of the smallest subnormal
};
inline constexpr Rounding kFloat64{0x1p-53, 0x1p-1074};
inline constexpr Rounding kFloat32{0x1p-24, 0x1p-150};
inline constexpr Rounding kBFloat16{0x1p-8, 0x1p-134};
inline constexpr Rounding kFloat16{0x1p-11, 0x1p-25};

/// What the sums over that type are taken in.
inline Rounding accumulator(const Rounding& type) {
  return type.unit == kFloat64.unit ? kFloat64 : kFloat32;
}

/// The budget of a stage that is a sum of non-negative multiples of its inputs: each of `terms`
/// products and sums rounds by a unit of the accumulator at most, relative to the same sum of the
/// inputs' absolute values, and storing rounds once more. Twice that, for terms of second order.
/// @param sum_of_absolute the stage, of the oracle, applied to the inputs' absolute values
inline Array linear_budget(Array sum_of_absolute, int64_t terms, const Rounding& type) {
  const double share = 2 * (static_cast<double>(terms + 1) * accumulator(type).unit + type.unit);
  for (double& value : sum_of_absolute.values) value = share * value + 2 * type.quantum;
  return sum_of_absolute;
}

}  // namespace lighthouse::testing
