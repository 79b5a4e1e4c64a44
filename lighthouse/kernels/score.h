#pragma once

#include "lighthouse/kernels/documents.h"
#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 1, score: the two scores of every coarse entry (the largest Euclidean norm of a token's q,
/// and of its k, in the entry's window), and the means of the root windows, in one pass over q, k
/// and v. Nothing of level 0 is written. For L >= 2: a pyramid of one level has nothing to choose.
///
/// A token's NaN score counts as -infinity, and so do positions without a token. The mean of a
/// window is over its tokens; of none it is zeros.
template <class T>
struct Score {
  Geometry geometry;
  Shape shape;
  Rows<const T> q;  ///< (B, H, N, D)
  Rows<const T> k;  ///< (B, G, N, D)
  Rows<const T> v;  ///< (B, G, N, D)
  float* scores_q;  ///< (B, G, E), E coarse entries; over the query heads of a group, the maximum
  float* scores_k;  ///< (B, G, E)
  T* roots;         ///< (B, R, H + 2 G, D): means of q, then k, then v
  Documents documents = {};
};

/// The scores of coarse entries from scores of tokens: the maxima over their windows.
struct PoolScores {
  Geometry geometry;
  Shape shape;            ///< the head dimension is not used
  const float* tokens_q;  ///< (B, H, N)
  const float* tokens_k;  ///< (B, G, N)
  float* scores_q;        ///< (B, G, E)
  float* scores_k;        ///< (B, G, E)
  Documents documents = {};
};

namespace cpu {

/// Work item: b R + r, a root window.
template <class T>
void score(const Score<T>& args, int64_t begin, int64_t end);
void pool_scores(const PoolScores& args, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

/// Bytes that `score` needs room for: memory of the device, aligned to 16 bytes, that nothing else
/// uses until the stream has passed the call. May be none, then null will do.
template <class T>
int64_t score_workspace_bytes(const Score<T>& args);

/// In one pass where rows are aligned to 16 bytes and have at most 512 (head dimension 256 in 16
/// bits); else q and k are read twice.
template <class T>
void score(const Score<T>& args, void* workspace, Stream stream);
void pool_scores(const PoolScores& args, Stream stream);

}  // namespace cuda
}  // namespace lighthouse
