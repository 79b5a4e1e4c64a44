#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <string>
#include <tuple>

namespace lighthouse::ops {

/// Runs `compute` below autograd, with results whose own backward raises NotImplementedError: for
/// what computes a gradient, so that a gradient of the gradient is an error rather than silently
/// wrong or missing.
/// @param name of the operator that is differentiated, for the message
/// @param inputs every tensor that the gradient depends on; all are defined
/// @param compute returns defined tensors
torch::autograd::variable_list no_double_backward(
    const std::string& name, at::TensorList inputs,
    const std::function<torch::autograd::variable_list()>& compute);

/// The same for three gradients, such as those of q, k and v.
std::tuple<at::Tensor, at::Tensor, at::Tensor> no_double_backward(
    const std::string& name, at::TensorList inputs,
    const std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>()>& compute);

}  // namespace lighthouse::ops
