#pragma once

#include "lighthouse/kernels/documents.h"
#include "lighthouse/kernels/pieces.h"
#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 3, gather: the rows of the entries in the sequence, for q, k and v. A level-0 row is a
/// copy, a root's is taken from the score stage, and the mean of a window between is formed here.
/// Rows of windows without a token are zeros.
template <class T>
struct Gather {
  Geometry geometry;
  Shape shape;
  Rows<const T> q;  ///< (B, H, N, D)
  Rows<const T> k;  ///< (B, G, N, D)
  Rows<const T> v;  ///< (B, G, N, D)
  const T* roots;   ///< (B, R, H + 2 G, D), as the score stage writes them; not read where L = 1
  const int32_t* rows;  ///< (B, G, S)
  Rows<T> gathered_q;   ///< (B, H, S, D)
  Rows<T> gathered_k;   ///< (B, G, S, D)
  Rows<T> gathered_v;   ///< (B, G, S, D)
  Documents documents = {};
};

/// Gradients of q, k and v from attention inside pieces, a segment each as its stock backward gives
/// them: (B * pieces, H or G, length, D).
template <class T>
struct NearGradients {
  Pieces pieces;  ///< none by default: there is nothing to add
  PieceRows<const T> q, k, v;
};

/// The adjoint of the gather stage and of the pooling before it: a token's gradient is the sum of
/// the gradients of the rows whose windows hold it, each divided by the number of its tokens, and,
/// where there are pieces, of its gradient from these. At most L + 1 terms, coarse to fine and the
/// pieces' last, in float32; each element is written once.
template <class T>
struct GatherBackward {
  Geometry geometry;
  Shape shape;
  Rows<const T> grad_gathered_q;  ///< (B, H, S, D)
  Rows<const T> grad_gathered_k;  ///< (B, G, S, D)
  Rows<const T> grad_gathered_v;  ///< (B, G, S, D)
  const Slot* slots;              ///< (B, G, E)
  Rows<T> grad_q;                 ///< (B, H, N, D)
  Rows<T> grad_k;                 ///< (B, G, N, D)
  Rows<T> grad_v;                 ///< (B, G, N, D)
  /// A row may be the one of grad_q, grad_k or grad_v that it is added to.
  NearGradients<T> near = {};
  Documents documents = {};
};

namespace cpu {

/// Work item: b S + s, a row of the gathered sequence.
template <class T>
void gather(const Gather<T>& args, int64_t begin, int64_t end);

/// Work item: b R + r, a root window.
template <class T>
void gather_backward(const GatherBackward<T>& args, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

template <class T>
void gather(const Gather<T>& args, Stream stream);
template <class T>
void gather_backward(const GatherBackward<T>& args, Stream stream);

}  // namespace cuda
}  // namespace lighthouse
