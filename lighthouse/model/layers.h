#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lighthouse::model {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; x of any shape (..., width), weight
/// (width), which is taken in the type of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// The angles of rotary embedding: cosines and sines, both (N, 1, D/2), computed in float32.
struct Rotation {
  at::Tensor cos, sin;

  Rotation() = default;
  /// For the positions of x (B, N, ...), in its type and on its device.
  Rotation(int64_t head_dim, double theta, const at::Tensor& x);

  /// Whether it covers the positions of x (B, N, ...), in its type and on its device.
  bool fits(const at::Tensor& x) const;
  Rotation first(int64_t tokens) const;
};

/// Rotary embedding as Hugging Face rotates, by halves: element i of the first half and of the
/// second are the two coordinates of pair i. x (B, N, heads, D) -> the same shape.
at::Tensor rotate(const at::Tensor& x, const Rotation& rotation);

/// silu(gate) * up, which keeps gate and up alone for the backward pass. Differentiable once.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace lighthouse::model
