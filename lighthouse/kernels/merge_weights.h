#pragma once

#include <cmath>
#include <limits>

#include "lighthouse/core/geometry.h"

/// The arithmetic of the merge stage, the same on both devices. Acc is float or double. Of all
/// log-sum-exps the largest is subtracted before any exponential, so that masses may differ by any
/// factor; a log-sum-exp of -infinity is a mass of 0, and NaN makes NaN.
namespace lighthouse {

template <class Acc>
LIGHTHOUSE_HOST_DEVICE bool has_mass(Acc lse) {
  return lse != -std::numeric_limits<Acc>::infinity();
}

/// exp(lse - most): 1 where they are equal, also where both are infinite.
template <class Acc>
LIGHTHOUSE_HOST_DEVICE Acc relative_mass(Acc lse, Acc most) {
  return lse == most ? Acc{1} : std::exp(lse - most);
}

/// What a position hears above level 0, the same for all positions of a level-1 window that is
/// shifted by one token: exp(most) sum is the mass of the rows together.
template <class Acc>
struct CoarseMass {
  int rows = 0;
  Acc most = -std::numeric_limits<Acc>::infinity();
  Acc sum = 0;

  LIGHTHOUSE_HOST_DEVICE void add(Acc lse) {
    ++rows;
    if (!has_mass(lse)) return;
    const Acc higher = lse > most ? lse : most;
    sum = sum * relative_mass(most, higher) + relative_mass(lse, higher);
    most = higher;
  }
};

/// The weights of a position's near row, of the sum over coarse rows of relative_mass(., most)
/// times the row, and of the token's own row; and the merged log-sum-exp.
template <class Acc>
struct MergeWeights {
  Acc near;
  Acc coarse;
  Acc token;
  Acc lse;
};

/// @param hears_token whether the position hears the row of its own token, of log-sum-exp token_lse
template <class Acc>
LIGHTHOUSE_HOST_DEVICE MergeWeights<Acc> merge_weights(Acc near_lse, const CoarseMass<Acc>& coarse,
                                                       bool hears_token, Acc token_lse) {
  const bool has_coarse = coarse.sum != 0;
  const bool has_token = hears_token && has_mass(token_lse);
  if (!has_coarse && !has_token) return {1, 0, 0, near_lse};
  Acc most = near_lse;
  if (has_coarse && coarse.most > most) most = coarse.most;
  if (has_token && token_lse > most) most = token_lse;
  const auto rows = static_cast<Acc>(coarse.rows + (hears_token ? 1 : 0));
  const Acc near = relative_mass(near_lse, most);
  const Acc of_coarse = has_coarse ? relative_mass(coarse.most, most) / rows : 0;
  const Acc of_token = has_token ? relative_mass(token_lse, most) / rows : 0;
  const Acc total = near + (of_coarse * coarse.sum + of_token);
  return {near / total, of_coarse / total, of_token / total, most + std::log(total)};
}

/// How many rows a position hears.
/// @param document the first position of its document
LIGHTHOUSE_HOST_DEVICE inline int heard_rows(const Geometry& geometry, const Slot* slots,
                                             int64_t position, int64_t document) {
  int rows = 0;
  for (int64_t level = geometry.root_level(); level >= 0; --level) {
    rows += heard_row(geometry, slots, level, position, document) >= 0 ? 1 : 0;
  }
  return rows;
}

/// The weight of a gathered row at a position that hears `rows` rows, in its merged output.
template <class Acc>
LIGHTHOUSE_HOST_DEVICE Acc row_weight(Acc row_lse, Acc merged_lse, int rows) {
  return has_mass(row_lse) ? relative_mass(row_lse, merged_lse) / static_cast<Acc>(rows) : 0;
}

/// What d o~ of a row is multiplied by to give the argument `out` of its stock backward, so that
/// their row sum is `dot`; `square` is |d o~|^2. In float64: the squares of small gradients are no
/// float32.
LIGHTHOUSE_HOST_DEVICE inline double backward_factor(double dot, double square) {
  return square > 0 ? dot / square : 0;
}

/// At most the largest finite number; NaN stays.
LIGHTHOUSE_HOST_DEVICE inline double bounded(double x, double largest) {
  return x > largest ? largest : x < -largest ? -largest : x;
}

}  // namespace lighthouse
