#pragma once

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "lighthouse/ops/attention.h"
#include "tests/support/tensors.h"

namespace lighthouse::testing {

/// What attention gives, and the gradients of q, k and v given that of out.
struct Results {
  at::Tensor out, grad_q, grad_k, grad_v;

  std::vector<at::Tensor> all() const { return {out, grad_q, grad_k, grad_v}; }
};
constexpr const char* kNames[] = {"out", "grad_q", "grad_k", "grad_v"};

/// By `f`, from q, k and v to out.
template <class F>
Results run_by(const Tensors& inputs, const at::Tensor& grad_out, const F& f) {
  const Tensors x = leaves(inputs);
  const at::Tensor out = f(x.q, x.k, x.v);
  const auto grads = torch::autograd::grad({out}, {x.q, x.k, x.v}, {grad_out});
  return {out.detach(), grads[0], grads[1], grads[2]};
}

/// By lighthouse::attention.
inline Results run(const Tensors& inputs, const at::Tensor& grad_out, const Config& config,
                   const Given& given = {}) {
  return run_by(inputs, grad_out,
                [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                  return attention(q, k, v, config, given);
                });
}

inline void expect_same_bits(const Results& actual, const Results& expected) {
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(actual.all()[i].equal(expected.all()[i])) << kNames[i];
  }
}

}  // namespace lighthouse::testing
