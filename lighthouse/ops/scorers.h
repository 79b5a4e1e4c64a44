#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lighthouse/core/config.h"

/// Scorers: functions of q, k and v that say how important each token is. To select with other
/// scores than those of a setting, give lighthouse::attention the result of any such function.
namespace lighthouse {

/// Two scores of each token, float32, larger is more important, never differentiated.
struct TokenScores {
  at::Tensor q;  ///< (B, H, N)
  at::Tensor k;  ///< (B, G, N)
};

/// By `config.scorer`. Of every scorer q is (B, H, N, D), k and v are (B, G, N, D); those who need
/// it expand k and v to H heads, and give a key/value head the largest score of its query heads.
TokenScores token_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const Config& config);

/// The Euclidean norms of q and k.
TokenScores norm_scores(const at::Tensor& q, const at::Tensor& k);

/// The norms of attn(q, k, v) and of attn(k, q, v), over each of the interleaved sub-sequences
/// t = r mod dilation, in which a token attends to those before it.
TokenScores dilated_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t dilation, std::optional<double> scale = {});

/// The norms of gla(q, k, v) and of gla(k, q, v), with gated linear attention
///
///     o_t = D^(-1/2) q_t S_t,    S_t = exp(g_t) S_(t-1) + k_t v_t^T
///
/// in chunks, in float32 (float64 for float64).
/// @param gate g, (B, H, N), 0 or less, any floating-point type; if not given, the state halves
///             every `half_life` tokens. What lies behind a gate of less than -64 is forgotten.
TokenScores gla_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const std::optional<at::Tensor>& gate = {},
                       int64_t half_life = Config{}.half_life);

}  // namespace lighthouse
