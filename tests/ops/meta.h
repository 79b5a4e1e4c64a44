#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <vector>

namespace lighthouse::testing {

/// Expects results on the meta device, with the types, sizes and strides of those elsewhere.
inline void expect_meta_of(const std::vector<at::Tensor>& expected,
                           const std::vector<at::Tensor>& meta) {
  ASSERT_EQ(meta.size(), expected.size());
  for (size_t i = 0; i < meta.size(); ++i) {
    EXPECT_EQ(meta[i].device(), at::Device(at::kMeta)) << i;
    EXPECT_EQ(meta[i].scalar_type(), expected[i].scalar_type()) << i;
    EXPECT_EQ(meta[i].sizes(), expected[i].sizes()) << i;
    EXPECT_EQ(meta[i].strides(), expected[i].strides()) << i;
  }
}

}  // namespace lighthouse::testing
