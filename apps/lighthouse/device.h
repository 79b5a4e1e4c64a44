#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace lighthouse::app {

/// The processor with its threads or the card, and the versions that its timings depend on.
std::string describe(at::Device device);

/// The bytes of memory that a device has.
int64_t memory_of(at::Device device);

/// Lets PyTorch's attention choose among all of its kernels (auto), or use one alone: cudnn, flash,
/// efficient or math.
void use_attention_kernel(const std::string& name);

/// The kernel that PyTorch's attention takes for these inputs, by the names above.
std::string attention_kernel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace lighthouse::app
