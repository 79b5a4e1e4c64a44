#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <utility>

#include "lighthouse/core/words.h"

/// The parts of a decoder layer, each with a backward pass that forms again what is cheap to form:
/// normalized activations and SwiGLU are not kept. Differentiable once.
namespace lighthouse::model {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; x of any shape (..., width), weight
/// (width), which is taken in the type of x.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// How rotary embedding is stretched beyond the contexts that a model was first trained with, by
/// the names that Hugging Face's rope_type has for it. A pair of coordinates is fast or slow by the
/// turns that it makes over the original context.
enum class RopeType {
  kDefault,  ///< not at all
  kLinear,   ///< every pair turns slower by the factor
  kDynamic,  ///< sequences longer than the original context have a larger theta, by their length
  kYarn,     ///< slow pairs turn slower by the factor, fast ones as before, and those between by
             ///< something between, linear in their index (YaRN, arXiv:2309.00071, section 3)
  kLlama3,   ///< as YaRN, but linear in their turns, and without YaRN's attention factor
};
}  // namespace lighthouse::model
namespace lighthouse {
template <>
inline constexpr std::array kWords<model::RopeType>{"default", "linear", "dynamic", "yarn",
                                                    "llama3"};
}
namespace lighthouse::model {

struct RopeScaling {
  RopeType type = RopeType::kDefault;
  double factor = 1;
  double low_frequency = 1;   ///< pairs of fewer turns are slow
  double high_frequency = 0;  ///< pairs of more turns are fast; 0: 4 of Llama 3, 32 of YaRN
  int64_t original_context = 8192;
  double attention_factor = 0;  ///< YaRN's, of cosines and sines; 0: 1 + ln(factor) / 10
  bool truncate = true;         ///< YaRN's bounds are whole indices

  /// `high_frequency` and `attention_factor` with what 0 stands for; an attention factor of 1 where
  /// the type has none.
  double fast_turns() const;
  double amplitude() const;
  bool operator==(const RopeScaling&) const = default;
};

/// The angles of rotary embedding: cosines and sines, both (N, D/2), times the attention factor; in
/// float32, or in float64 for a model of that type, whose angles are float32's all the same.
struct Rotation {
  at::Tensor cos, sin;

  Rotation() = default;
  Rotation(at::Tensor cosines, at::Tensor sines) : cos(std::move(cosines)), sin(std::move(sines)) {}
  /// For the positions of x (B, N, ...), on its device. With dynamic scaling the angles are those
  /// of sequences of N tokens, or of any length up to the original context where N is.
  Rotation(int64_t head_dim, double theta, const at::Tensor& x, const RopeScaling& scaling = {});

  /// Whether it covers the positions of x (B, N, ...), on its device, for its type.
  bool fits(const at::Tensor& x) const;
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
