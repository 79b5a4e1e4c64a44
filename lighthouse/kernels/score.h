#pragma once

#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 1, score: the two scores of every coarse entry (method: the largest Euclidean norm of a
/// token's q, and of its k, in the entry's window), and the means of the root windows, in one pass.
///
/// Both outputs are optional: a null pointer leaves that half of the work out.
template <class T>
struct Score {
  Geometry geometry;
  Shape shape;
  Rows<const T> q;  ///< (B, H, N, D)
  Rows<const T> k;  ///< (B, G, N, D); like v read for `roots` and `scores` as needed
  Rows<const T> v;  ///< (B, G, N, D); read for `roots` only
  float* scores_q;  ///< (B, G, E), E coarse entries; of the query heads of a group, the maximum
  float* scores_k;  ///< (B, G, E)
  T* roots;         ///< (B, R, H + 2 G, D): means of q, then k, then v
};

/// The scores of coarse entries from scores of tokens, which the caller brings.
struct PoolScores {
  Geometry geometry;
  Shape shape;          ///< the head dimension is not used
  const float* tokens_q;  ///< (B, H, N)
  const float* tokens_k;  ///< (B, G, N)
  float* scores_q;        ///< (B, G, E)
  float* scores_k;        ///< (B, G, E)
};

// A token's NaN score counts as -infinity; tokens past N have score -infinity, and the mean of a
// window is over its tokens below N, zeros where it has none.

namespace cpu {

/// Work item: b R + r, a root window of a batch.
template <class T>
void score(const Score<T>& args, int64_t begin, int64_t end);
void pool_scores(const PoolScores& args, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace lighthouse
