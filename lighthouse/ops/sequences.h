#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lighthouse/ops/attend.h"

namespace lighthouse {

/// Stock causal attention inside sequences that follow one another: pieces, documents, or the
/// gathered rows of documents. PyTorch's flash attention where that takes the arguments: on the CPU
/// one sequence after the other, on a GPU for sequences of several lengths, in bfloat16 and float16
/// and up to 256 elements a head. Else it is made of products, in memory of N N.
///
/// Results are those of `attend`; differentiable once, by `out`.
///
/// @param q (B, H, N, D), k and v (B, G, N, D)
/// @param borders (B, 1 or G, C) int32 on their device, rising from 0 to N: for all key/value heads
///                or for each, there is a sequence between two that follow one another; it may be
///                empty. On a GPU nothing looks at what they hold.
/// @param longest no sequence is longer
Attended attend_sequences(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& borders, int64_t longest,
                          std::optional<double> scale = {});

AttendGradients attend_sequences_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                          const at::Tensor& k, const at::Tensor& v,
                                          const Attended& attended, const at::Tensor& borders,
                                          int64_t longest, std::optional<double> scale = {});

}  // namespace lighthouse
