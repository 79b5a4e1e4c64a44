#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/gradients.h"
#include "tests/support/tensors.h"

/// Pieces, beside Lighthouse and alone, by plain code: what it is off by is what rounding costs.
namespace lighthouse::testing {

struct PlainlyAttended {
  at::Tensor out, logsumexp;
};

/// Attention by products, where `seen` is true: (N, N), or (B, 1 or H, N, N).
inline PlainlyAttended attend_plainly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& seen, double scale) {
  const at::Tensor scores =
      q.matmul(k.transpose(2, 3)).mul(scale).masked_fill(seen.logical_not(), -kInfinity);
  const at::Tensor logsumexp = scores.logsumexp(-1);
  return {(scores - logsumexp.unsqueeze(-1)).exp().matmul(v), logsumexp};
}

/// The number of each token's document, from 1 on: (B, 1, N, 1).
inline at::Tensor document_numbers(int64_t batch, int64_t tokens,
                                   const oracle::Documents& documents, at::ScalarType type) {
  Array numbers({batch, 1, tokens, 1}, 1);
  for (size_t b = 0; b < documents.starts.size(); ++b)
    for (size_t d = 0; d < documents.starts[b].size(); ++d)
      for (int64_t t = documents.starts[b][d]; t < tokens; ++t)
        numbers(b, 0, t, 0) = static_cast<double>(d + 1);
  return to_tensor(numbers, type);
}

/// Sums in float32, stored in the type of the inputs as often as ours.
/// @param rows the gathered rows, as the oracle's; if not given, pieces alone
inline Results run_plainly(const Tensors& inputs, const at::Tensor& grad_out, const Array* rows,
                           const Config& config, const oracle::Documents& documents = {}) {
  using at::Tensor;
  const at::ScalarType type = inputs.q.scalar_type();
  const at::ScalarType sums = type == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t batch = inputs.q.size(0), tokens = inputs.q.size(2), groups = inputs.k.size(1);
  const int64_t shared = inputs.q.size(1) / groups;
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(inputs.q.size(3))));
  const auto stored = [&](const Tensor& t) { return t.to(type).to(sums); };
  const auto each_head = [&](const Tensor& t) { return t.repeat_interleave(shared, 1); };
  const auto equal_pairs = [](const Tensor& numbers) {
    return numbers.eq(numbers.transpose(-2, -1)).tril();
  };
  const Tensor document = document_numbers(batch, tokens, documents, sums);
  return run_by(inputs, grad_out, [&](const Tensor& q_in, const Tensor& k_in, const Tensor& v_in) {
    const Tensor q = q_in.to(sums), k = k_in.to(sums), v = v_in.to(sums);
    const Tensor piece = at::arange(tokens, q.options().dtype(at::kLong))
                             .add(config.local - config.local_shift)
                             .floor_divide(config.local);
    const PlainlyAttended near =
        attend_plainly(q, each_head(k), each_head(v),
                       equal_pairs(piece.unsqueeze(1)).logical_and(equal_pairs(document)), scale);
    const Tensor near_out = stored(near.out);
    if (rows == nullptr) return near_out.to(type);
    const auto identity = [&](int64_t size) {
      const std::vector<int64_t> shape{batch, groups, size, size};
      return to_array(at::eye(size, at::kDouble).expand(shape));
    };
    const Tensor pooling =
        to_tensor(oracle::gather(identity(tokens), *rows, config, documents), sums);
    const Tensor heard = each_head(to_tensor(
        oracle::scatter(identity(rows->size(2)), *rows, tokens, config, documents), sums));
    // Rows without a token have the number 0, and nobody hears them.
    const Tensor row_document = pooling.matmul(document).round();
    const PlainlyAttended far = attend_plainly(
        stored(each_head(pooling).matmul(q)), each_head(stored(pooling.matmul(k))),
        each_head(stored(pooling.matmul(v))), each_head(equal_pairs(row_document)), scale);
    const Tensor count = heard.sum(-1).clamp_min(1);
    const Tensor masses = far.logsumexp.unsqueeze(2)
                              .expand_as(heard)
                              .masked_fill(heard.eq(0), -kInfinity)
                              .sub(count.log().unsqueeze(-1));
    const Tensor all = at::cat({near.logsumexp.unsqueeze(-1), masses}, -1);
    const Tensor weights = all.sub(all.logsumexp(-1, /*keepdim=*/true)).exp();
    return (weights.narrow(-1, 0, 1) * near_out +
            weights.narrow(-1, 1, rows->size(2)).matmul(stored(far.out)))
        .to(type);
  });
}

/// Four times the error of plain code, a unit for each rounding, and one of the type of sums for
/// each of their terms, whose order is that of a kernel. Gradients of q and k are differences,
/// which may all be 0: the units are also of what is subtracted, the sum over a row of
/// |grad_out out|.
/// @param logits the largest; exp makes errors of them relative ones
inline void expect_within_budget(const Results& ours, const Results& plain, const Tensors& inputs,
                                 const at::Tensor& grad_out, const Array& out,
                                 const oracle::Qkv& grad, const Config& config, double logits = 1) {
  const Rounding type = rounding(inputs.q.scalar_type());
  const double terms =
      static_cast<double>(inputs.q.size(2)) + static_cast<double>(inputs.q.size(3)) * logits;
  const double units =
      static_cast<double>(config.levels + 2) * type.unit + terms * accumulator(type).unit;
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(inputs.q.size(3))));
  const double row_sum =
      grad_out.mul(plain.out).abs().sum(-1, false, at::kDouble).max().item<double>();
  const double subtracted[] = {0, scale * row_sum * largest(to_array(inputs.k)),
                               scale * row_sum * largest(to_array(inputs.q)), 0};
  const Array* expected[] = {&out, &grad.q, &grad.k, &grad.v};
  for (size_t i = 0; i < 4; ++i) {
    const double plain_error =
        largest(to_array(plain.all()[i].to(at::kDouble) - to_tensor(*expected[i])));
    const double budget = 4 * plain_error + units * (largest(*expected[i]) + subtracted[i]);
    EXPECT_TRUE(within(to_array(ours.all()[i]), *expected[i], Array(expected[i]->shape, budget)))
        << kNames[i];
  }
}

}  // namespace lighthouse::testing
