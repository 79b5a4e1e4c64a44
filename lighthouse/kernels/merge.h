#pragma once

#include "lighthouse/core/dtype.h"
#include "lighthouse/kernels/documents.h"
#include "lighthouse/kernels/pieces.h"
#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 5 beside pieces, merge (in place of scatter): each position takes its near row, from
/// attention inside its piece, and the gathered rows that it hears as one softmax would. With n and
/// lambda the near row and its log-sum-exp, o~_r and lambda~_r those of gathered row r, and J the
/// c rows heard, of the position's own document and at most one of each level (see scatter):
///
///     lse = log(exp(lambda) + sum over r in J of exp(lambda~_r) / c)
///     out = exp(lambda - lse) n + sum over r in J of exp(lambda~_r - lse) / c o~_r
///
/// Where c = 0, or all that is heard has the mass exp(lambda~) = 0, the result is near's. A row
/// whose weight is 0 is not read, so what it holds does not matter. NaN comes of NaN alone.
/// Float32 (float64 for float64) throughout; each element is written once.
template <class T>
struct Merge {
  using Acc = accumulator_t<T>;

  Geometry geometry;
  Shape shape;
  Pieces pieces;
  PieceRows<const T> near_out;    ///< (B * pieces, H, length, D) a segment
  PieceRows<const Acc> near_lse;  ///< (B * pieces, H, length) a segment
  Rows<const T> gathered_out;     ///< (B, H, S, D)
  Rows<const Acc> gathered_lse;   ///< (B, H, S)
  const Slot* slots;              ///< (B, G, E)
  Rows<T> out;  ///< (B, H, N, D); a row may be the near row that it is formed from
  Acc* lse;     ///< (B, H, N) as Pieces::lse_index has it; an element may be the near one
  Documents documents = {};
};

/// The adjoint towards the gathered rows, as their stock backward takes it. With
/// a_r(j) = exp(lambda~_r - lse_j) / c_j, and sums over the positions j that hear row r, in order:
///
///     d o~_r = sum of a_r(j) d out_j        D_r = sum of a_r(j) (d out_j . out_j)
///
/// Stock backward uses its argument `out` for the row sums of d o~ * out alone, and these must be
/// D_r: so that argument is d o~_r D_r / |d o~_r|^2, and zeros where d o~_r is zero. Its elements
/// are bounded by the largest finite number of their type.
///
/// Near needs nothing computed: its stock backward takes d out, the merged `out` and `lse`.
template <class T>
struct MergeBackward {
  using Acc = accumulator_t<T>;

  Geometry geometry;
  Shape shape;
  Pieces pieces;
  Rows<const T> grad_out;        ///< (B, H, N, D)
  Rows<const T> out;             ///< (B, H, N, D), merged
  const Acc* lse;                ///< (B, H, N), as the forward pass stored it
  Rows<const Acc> gathered_lse;  ///< (B, H, S)
  const int32_t* rows;           ///< (B, G, S)
  const Slot* slots;             ///< (B, G, E)
  Rows<T> grad_gathered_out;     ///< (B, H, S, D): d o~
  Rows<T> backward_out;          ///< (B, H, S, D): the argument `out` of stock backward
  Documents documents = {};
};

namespace cpu {

/// Work item: b (floor(N / p) + 1) + w, a level-1 window shifted one token to the left: the
/// positions j with floor((j + 1) / p) = w; of documents, all padded positions in place of N.
template <class T>
void merge(const Merge<T>& args, int64_t begin, int64_t end);
inline int64_t merge_windows(const Geometry& g, const Documents& documents = {}) {
  return documents.positions(g) / g.pooling + 1;
}

/// Work item: b S + s, a row of the gathered sequence.
template <class T>
void merge_backward(const MergeBackward<T>& args, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

template <class T>
void merge(const Merge<T>& args, Stream stream);
template <class T>
void merge_backward(const MergeBackward<T>& args, Stream stream);

}  // namespace cuda
}  // namespace lighthouse
