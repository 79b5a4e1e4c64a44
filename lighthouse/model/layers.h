#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <utility>

/// The parts of a decoder layer, each with a backward pass that forms again what is cheap to form:
/// normalized activations and SwiGLU are not kept. Differentiable once.
namespace lighthouse::model {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; x of any shape (..., width), weight
/// (width), which is taken in the type of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// How Llama 3 stretches rotary embedding to longer contexts: slow pairs turn slower by the factor,
/// fast ones as before, those between by something between. A factor of 1 changes nothing.
struct RopeScaling {
  double factor = 1;
  double low_frequency = 1;   ///< pairs of fewer turns over the original context are slow
  double high_frequency = 4;  ///< pairs of more turns are fast
  int64_t original_context = 8192;
  bool operator==(const RopeScaling&) const = default;
};

/// The angles of rotary embedding: cosines and sines, both (N, D/2), in float32, or in float64 for
/// a model of that type, whose angles are float32's all the same.
struct Rotation {
  at::Tensor cos, sin;

  Rotation() = default;
  Rotation(at::Tensor cosines, at::Tensor sines) : cos(std::move(cosines)), sin(std::move(sines)) {}
  /// For the positions of x (B, N, ...), on its device.
  Rotation(int64_t head_dim, double theta, const at::Tensor& x, const RopeScaling& scaling = {});

  /// Whether it covers the positions of x (B, N, ...), on its device, for its type.
  bool fits(const at::Tensor& x) const;
  Rotation first(int64_t tokens) const;
};

/// Rotary embedding as Hugging Face rotates, by halves: element i of the first half and of the
/// second are the two coordinates of pair i. Not differentiable: `inverse` is its adjoint.
/// @param x (B, N, heads, D)
/// @param out like x; may be x
void rotate_out(const at::Tensor& x, const Rotation& rotation, bool inverse, at::Tensor& out);

/// A normalization and its epsilon.
struct Norm {
  at::Tensor weight;
  double eps;
};

/// What attention attends over: x (B, N, width) normalized, projected, and, of q and k, rotated.
/// Keeps x alone.
/// @param q,k,v the projections' weights, (heads D, width)
/// @return q, k and v, (B, N, heads, D)
std::array<at::Tensor, 3> project_heads(const at::Tensor& x, const Norm& norm, const at::Tensor& q,
                                        const at::Tensor& k, const at::Tensor& v,
                                        const Rotation& rotation, int64_t head_dim);

/// x + heads projected: x (B, N, width), heads (B, N, heads, D), weight (width, heads D).
at::Tensor add_projected(const at::Tensor& x, const at::Tensor& heads, const at::Tensor& weight);

/// x + down(silu(gate(y)) * up(y)) of y, x (B, N, width) normalized. Keeps x and gate(y) and up(y).
/// @param recompute keeps x alone, for one more product in the backward pass
at::Tensor add_mlp(const at::Tensor& x, const Norm& norm, const at::Tensor& gate,
                   const at::Tensor& up, const at::Tensor& down, bool recompute = false);

}  // namespace lighthouse::model
