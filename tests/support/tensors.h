#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "tests/support/cases.h"
#include "tests/support/device.h"

namespace lighthouse::testing {

inline Rounding rounding(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return kFloat64;
    case at::kFloat:
      return kFloat32;
    case at::kBFloat16:
      return kBFloat16;
    default:
      return kFloat16;
  }
}

inline Array to_array(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().cpu().to(at::kDouble).contiguous();
  Array array(values.sizes().vec());
  const double* data = values.const_data_ptr<double>();
  array.values.assign(data, data + values.numel());
  return array;
}

inline at::Tensor to_tensor(const Array& array, at::ScalarType type = at::kDouble) {
  at::Tensor tensor = at::empty(array.shape, at::kDouble);
  std::copy(array.values.begin(), array.values.end(), tensor.mutable_data_ptr<double>());
  return tensor.to(device(), type);
}

/// The same values (B, H, N, D), stored as (B, N, H, D).
inline at::Tensor tokens_major(const at::Tensor& tensor) {
  return tensor.transpose(1, 2).contiguous().transpose(1, 2);
}

struct Tensors {
  at::Tensor q, k, v;
};

/// q, k and v of a case, in the type, in a layout drawn at random for each.
inline Tensors random_tensors(Random& random, const Case& c, at::ScalarType type) {
  const oracle::Qkv x = random_qkv(random, c);
  const auto tensor = [&](const Array& array) {
    const at::Tensor contiguous = to_tensor(array, type);
    return draw(random, 0, 1) ? contiguous : tokens_major(contiguous);
  };
  return {tensor(x.q), tensor(x.k), tensor(x.v)};
}

inline oracle::Qkv to_arrays(const Tensors& x) {
  return {to_array(x.q), to_array(x.k), to_array(x.v)};
}

/// The documents of a case as the operators take them: (B, M), ended by N.
inline at::Tensor starts_of(const Case& c) {
  Array starts({c.batch, c.documents.most}, static_cast<double>(c.tokens));
  for (int64_t b = 0; b < c.batch; ++b)
    for (size_t d = 0; d < c.documents.starts[b].size(); ++d)
      starts(b, d) = static_cast<double>(c.documents.starts[b][d]);
  return to_tensor(starts, at::kInt);
}

/// Leaves of their own, that need gradients; strides are kept.
inline Tensors leaves(const Tensors& x) {
  const auto leaf = [](const at::Tensor& tensor) { return tensor.detach().requires_grad_(); };
  return {leaf(x.q), leaf(x.k), leaf(x.v)};
}

}  // namespace lighthouse::testing
