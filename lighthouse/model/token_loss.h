#pragma once

#include <ATen/core/Tensor.h>

namespace lighthouse::model {

/// The cross entropy of each target, in float32 (float64 for float64), differentiable once in
/// hidden and weight. Logits are formed for a chunk of positions at a time, and formed again in
/// the backward pass.
///
/// @param hidden (positions, width)
/// @param weight (vocabulary, width), the output projection
/// @param targets (positions) int64, in [0, vocabulary), or data::kNoTarget: no loss, 0, and no
///        gradient
/// @param z_loss adds z_loss (log Z)^2, Z being the sum of exp(logits), to what is differentiated,
///        not to what is returned: it keeps log Z near 0
/// @return (positions), nats
at::Tensor token_loss(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                      double z_loss = 0);

/// Positions whose logits token_loss forms at a time: enough to keep matrix products efficient, few
/// enough that the logits are small beside the activations of one layer.
int64_t positions_at_once(int64_t vocabulary, at::Device device);

}  // namespace lighthouse::model
