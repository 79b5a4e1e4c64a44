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

}  // namespace

template <class T>
void score(const Score<T>& args, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const int64_t heads = args.shape.heads;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  const int64_t columns = args.shape.columns();
  const int64_t coarse_entries = g.coarse_entries();
  std::vector<Acc> sums(columns * dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.roots;
    const int64_t r = item % g.roots;
    float* scores_q = args.scores_q + b * groups * coarse_entries;
    float* scores_k = args.scores_k + b * groups * coarse_entries;
    for (int64_t j = 0; j < groups; ++j) {
      clear_level_one(g, r, scores_q + j * coarse_entries);
      clear_level_one(g, r, scores_k + j * coarse_entries);
    }
    std::fill(sums.begin(), sums.end(), Acc{});

    // Tokens outside and heads inside: where heads are neighbours in memory, as a model's
    // projections leave them, that reads q, k and v from front to back.
    const auto [first, present] = args.documents.range(g, b, r * g.root_window(), g.root_window());
    for (int64_t t = 0; t < present; ++t) {
      const int64_t token = first + t;
      const int64_t entry = g.coarse(1, (r * g.root_window() + t) / g.pooling);
      Acc* sum = sums.data();
      for (int64_t h = 0; h < heads; ++h, sum += dim) {
        raise(scores_q[args.shape.group(h) * coarse_entries + entry],
              add_row_and_norm(args.q.at(b, h, token), dim, sum));
      }
      for (int64_t j = 0; j < groups; ++j, sum += dim) {
        raise(scores_k[j * coarse_entries + entry],
              add_row_and_norm(args.k.at(b, j, token), dim, sum));
      }
      for (int64_t j = 0; j < groups; ++j, sum += dim) {
        add_row(args.v.at(b, j, token), dim, sum);
      }
    }

    store_quotient(sums.data(), static_cast<Acc>(std::max<int64_t>(present, 1)), columns * dim,
                   args.roots + item * columns * dim);
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
    const auto [first, present] = args.documents.range(g, b, r * g.root_window(), g.root_window());
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
