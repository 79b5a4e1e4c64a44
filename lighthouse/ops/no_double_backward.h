#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <string>

namespace lighthouse::ops {

/// Runs `compute` below autograd, with results whose own backward raises: for a backward operator,
/// so that a gradient of a gradient is an error rather than silently missing.
/// @param name of the operator that is differentiated, for the message
torch::autograd::variable_list no_double_backward(
    const std::string& name, at::TensorList inputs,
    const std::function<torch::autograd::variable_list()>& compute);

}  // namespace lighthouse::ops
