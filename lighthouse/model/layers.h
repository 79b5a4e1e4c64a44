#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <utility>

#include "lighthouse/model/model_config.h"

/// The parts of a decoder layer, each with a backward pass that forms again what is cheap to form:
/// normalized activations and SwiGLU are not kept. Differentiable once.
namespace lighthouse::model {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; x of any shape (..., width), weight
/// (width), which is taken in the type of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// The angles of rotary embedding: cosines and sines, both (N, D/2), or (B, N, D/2) where rows have
/// positions of their own, times the attention factor; in float32, or in float64 for a model of
/// that type, whose angles are float32's all the same.
struct Rotation {
  at::Tensor cos, sin;

  Rotation() = default;
  Rotation(at::Tensor cosines, at::Tensor sines) : cos(std::move(cosines)), sin(std::move(sines)) {}
  /// For the positions 0 to N - 1 of x (B, N, ...), on its device. With dynamic scaling the angles
  /// are those of sequences of N tokens, or of any length up to the original context where N is.
  Rotation(int64_t head_dim, double theta, const at::Tensor& x, const RopeScaling& scaling = {});
  /// For these positions, (B, N), of x (B, N, ...), to the bit those of a sequence that has them
  /// all. Throws std::invalid_argument with dynamic scaling, which goes by the length of that.
  Rotation(int64_t head_dim, double theta, const at::Tensor& x, const RopeScaling& scaling,
           const at::Tensor& positions);

  /// Whether it covers the positions 0 to N - 1 of x (B, N, ...), on its device, for its type.
  bool fits(const at::Tensor& x) const;
  /// Those of the positions below `tokens`.
  Rotation first(int64_t tokens) const;
};

/// Rotary embedding as Hugging Face rotates, by halves: element i of the first half and of the
/// second are the two coordinates of pair i. Not differentiable: `inverse` turns back, which is its
/// adjoint.
/// @param x (B, N, heads, D)
/// @param out like x; may be x
void rotate_out(const at::Tensor& x, const Rotation& rotation, bool inverse, at::Tensor& out);

/// A normalization and its epsilon.
struct Norm {
  at::Tensor weight;
  double eps;
};

/// The weight of a linear map, (out, in), and its bias, (out); undefined where it has none.
struct Projection {
  at::Tensor weight;
  at::Tensor bias = {};
};

/// What attention attends over: x (B, N, width) normalized, projected, and, of q and k, rotated.
/// Keeps x alone.
/// @param q,k,v (heads D, width); all of them have a bias, or none
/// @return q, k and v, (B, N, heads, D)
std::array<at::Tensor, 3> project_heads(const at::Tensor& x, const Norm& norm, const Projection& q,
                                        const Projection& k, const Projection& v,
                                        const Rotation& rotation, int64_t head_dim);

/// x + heads projected: x (B, N, width), heads (B, N, heads, D), projection (width, heads D).
at::Tensor add_projected(const at::Tensor& x, const at::Tensor& heads,
                         const Projection& projection);

/// x + down(silu(gate(y)) * up(y)) of y, x (B, N, width) normalized. Keeps x and gate(y) and up(y).
/// @param gate,up both have a bias, or none
/// @param recompute keeps x alone, for one more product in the backward pass
at::Tensor add_mlp(const at::Tensor& x, const Norm& norm, const Projection& gate,
                   const Projection& up, const Projection& down, bool recompute = false);

}  // namespace lighthouse::model
