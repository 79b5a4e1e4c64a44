#pragma once

#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// Stage 5, scatter: an entry's output row goes to the p^l positions from the entry's last token
/// on, so that nothing flows back in time. Written as a gather: position j hears, at level l, from
/// entry floor((j + 1) / p^l) - 1, where that is in the sequence. At most L terms, coarse to fine,
/// in float32; each element is written once.
template <class T>
struct Scatter {
  Geometry geometry;
  Shape shape;
  Rows<const T> gathered_out;  ///< (B, H, S, D)
  const Slot* slots;           ///< (B, G, E)
  Rows<T> out;                 ///< (B, H, N, D)
};

/// The adjoint: a row's gradient is the sum over the positions that its entry was added to.
template <class T>
struct ScatterBackward {
  Geometry geometry;
  Shape shape;
  Rows<const T> grad_out;     ///< (B, H, N, D)
  const int32_t* rows;        ///< (B, G, S)
  Rows<T> grad_gathered_out;  ///< (B, H, S, D)
};

namespace cpu {

/// Work item: b (floor(N / p^(L-1)) + 1) + w, a root window shifted one token to the left: the
/// positions j with floor((j + 1) / p^(L-1)) = w.
template <class T>
void scatter(const Scatter<T>& args, int64_t begin, int64_t end);
inline int64_t scatter_windows(const Geometry& g) { return g.tokens / g.root_window() + 1; }

/// Work item: b S + s, a row of the gathered sequence.
template <class T>
void scatter_backward(const ScatterBackward<T>& args, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

template <class T>
void scatter(const Scatter<T>& args, Stream stream);
template <class T>
void scatter_backward(const ScatterBackward<T>& args, Stream stream);

}  // namespace cuda
}  // namespace lighthouse
