#include "lighthouse/kernels/score.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "lighthouse/kernels/cpu/row.h"

namespace lighthouse::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

/// A NaN compares false, so it leaves a maximum that began at -infinity alone.
void raise(float& maximum, float score) {
  if (score > maximum) maximum = score;
}

/// The level-1 scores of one root window: `scores` are those of a batch and key/value head.
float* level_one(const Geometry& g, int64_t root, float* scores) {
  return scores + g.coarse(1, root * (g.root_window() / g.pooling));
}

void clear_level_one(const Geometry& g, int64_t root, float* scores) {
  std::fill_n(level_one(g, root, scores), g.root_window() / g.pooling, kNone);
}

/// The maxima of levels 2 and above of one root window, from those of level 1.
void pool_levels(const Geometry& g, int64_t root, float* scores) {
  for (int64_t l = 2; l < g.levels; ++l) {
    const int64_t count = g.window[g.root_level() - l];
    for (int64_t i = root * count; i < (root + 1) * count; ++i) {
      const float* children = scores + g.coarse(l - 1, i * g.pooling);
      scores[g.coarse(l, i)] = *std::max_element(children, children + g.pooling);
    }
  }
}

/// One head's root window: raises its level-1 scores by the tokens' norms (not where `level1` is
/// null) and writes its mean. `sum` is scratch for a row.
template <class T>
void score_window(const Geometry& g, const T* rows, int64_t row_stride, int64_t present,
                  int64_t dim, float* level1, T* root, accumulator_t<T>* sum) {
  zero_row(dim, sum);
  for (int64_t t = 0; t < present; ++t) {
    const T* row = rows + t * row_stride;
    if (level1 != nullptr) raise(level1[t / g.pooling], norm(row, dim));
    add_row(row, dim, sum);
  }
  store_quotient(sum, static_cast<accumulator_t<T>>(present), dim, root);
}

}  // namespace

template <class T>
void score(const Score<T>& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t heads = args.shape.heads;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  const int64_t coarse_entries = g.coarse_entries();
  std::vector<accumulator_t<T>> sum(dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.roots;
    const int64_t r = item % g.roots;
    const int64_t first = r * g.root_window();
    const int64_t present = g.present(g.root_level(), r);
    float* scores_q = args.scores_q + b * groups * coarse_entries;
    float* scores_k = args.scores_k + b * groups * coarse_entries;
    T* root = args.roots + item * (heads + 2 * groups) * dim;

    for (int64_t j = 0; j < groups; ++j) {
      clear_level_one(g, r, scores_q + j * coarse_entries);
      clear_level_one(g, r, scores_k + j * coarse_entries);
    }
    for (int64_t h = 0; h < heads; ++h, root += dim) {
      float* scores = scores_q + args.shape.group(h) * coarse_entries;
      score_window(g, args.q.at(b, h, first), args.q.row_stride, present, dim,
                   level_one(g, r, scores), root, sum.data());
    }
    for (int64_t j = 0; j < groups; ++j, root += dim) {
      score_window(g, args.k.at(b, j, first), args.k.row_stride, present, dim,
                   level_one(g, r, scores_k + j * coarse_entries), root, sum.data());
    }
    for (int64_t j = 0; j < groups; ++j, root += dim) {
      score_window<T>(g, args.v.at(b, j, first), args.v.row_stride, present, dim, nullptr, root,
                      sum.data());
    }
    for (int64_t j = 0; j < groups; ++j) {
      pool_levels(g, r, scores_q + j * coarse_entries);
      pool_levels(g, r, scores_k + j * coarse_entries);
    }
  }
}

void pool_scores(const PoolScores& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t groups = args.shape.groups;
  const auto pool = [&](const float* tokens, int64_t heads, int64_t b, int64_t r, float* scores) {
    const int64_t first = r * g.root_window();
    const int64_t present = g.present(g.root_level(), r);
    for (int64_t j = 0; j < groups; ++j) {
      float* of_group = scores + (b * groups + j) * g.coarse_entries();
      clear_level_one(g, r, of_group);
      float* level1 = level_one(g, r, of_group);
      for (int64_t h = j * heads / groups; h < (j + 1) * heads / groups; ++h) {
        const float* of_head = tokens + (b * heads + h) * g.tokens + first;
        for (int64_t t = 0; t < present; ++t) raise(level1[t / g.pooling], of_head[t]);
      }
      pool_levels(g, r, of_group);
    }
  };
  for (int64_t item = begin; item < end; ++item) {
    pool(args.tokens_q, args.shape.heads, item / g.roots, item % g.roots, args.scores_q);
    pool(args.tokens_k, groups, item / g.roots, item % g.roots, args.scores_k);
  }
}

#define INSTANTIATE(T) template void score(const Score<T>&, int64_t, int64_t);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cpu
