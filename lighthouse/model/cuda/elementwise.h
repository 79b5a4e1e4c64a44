#pragma once

#include <cstdint>

#include "lighthouse/core/dtype.h"
#include "lighthouse/kernels/stream.h"
#include "lighthouse/kernels/tensor_view.h"

/// The parts of a decoder layer that PyTorch has no kernel for. Each reads its inputs once.
namespace lighthouse::cuda {

/// Rotary embedding by halves, or its inverse, which is its adjoint. x and out are (batch, heads,
/// tokens, dim) and may be the same; cos and sin are (tokens, dim / 2), or (batch, tokens, dim / 2)
/// where `angles_by_row`.
template <class T>
struct Rotate {
  Rows<const T> x;
  Rows<T> out;
  const accumulator_t<T>* cos;
  const accumulator_t<T>* sin;
  int64_t batch, heads, tokens, dim;
  bool angles_by_row, inverse;
};
template <class T>
void rotate(const Rotate<T>& args, Stream stream);

/// Rows of gate and up, side by side: gate_up (rows, 2 width), the others (rows, width) or, of
/// grad_gate_up, (rows, 2 width); all contiguous.
template <class T>
struct Swiglu {
  int64_t rows, width;
  const T* gate_up;
  T* hidden;  ///< silu(gate) * up
  const T* grad_hidden = nullptr;
  T* grad_gate_up = nullptr;
};
template <class T>
void swiglu(const Swiglu<T>& args, Stream stream);
/// Writes the gradient, and `hidden` once more.
template <class T>
void swiglu_backward(const Swiglu<T>& args, Stream stream);

}  // namespace lighthouse::cuda
