#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace lighthouse::testing {

/// (batch, tokens), of a vocabulary of 256.
inline at::Tensor random_tokens(int64_t batch, int64_t tokens, at::Device device = at::kCPU) {
  return at::randint(0, 256, {batch, tokens}, at::kLong).to(device);
}

inline double max_difference(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  return (a - b).abs().max().item<double>();
}

/// The largest difference, as a part of the largest value of the reference. In float64.
inline double relative_error(const at::Tensor& value, const at::Tensor& reference) {
  EXPECT_EQ(value.sizes(), reference.sizes());
  const at::Tensor expected = reference.to(at::kDouble);
  return ((value.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

}  // namespace lighthouse::testing
