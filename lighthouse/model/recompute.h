#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace lighthouse::model {

/// What `layer` makes of x. It keeps x alone, and computes the layer again in the backward pass,
/// which adds the gradients of parameters up where they lie: for backward(), not for grad().
/// @param layer a tensor for a tensor, the same both times; x and its parameters alone have
///        gradients
at::Tensor recomputed(const std::function<at::Tensor(const at::Tensor&)>& layer,
                      const at::Tensor& x);

}  // namespace lighthouse::model
