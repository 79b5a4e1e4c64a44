#include "lighthouse/ops/attend_call.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>

#include <cmath>

#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {

using at::Tensor;

Call Call::expanded() const {
  if (!grouped()) return *this;
  return {q,
          k.repeat_interleave(heads_per_group(), 1),
          v.repeat_interleave(heads_per_group(), 1),
          causal,
          scale,
          hidden};
}

Tensor Call::sum_groups(const Tensor& grad) const {
  return grouped() ? grad.unflatten(1, {k.size(1), heads_per_group()}).sum(2) : grad;
}

double scale_of(const Tensor& q, std::optional<double> scale) {
  return scale.value_or(1 / std::sqrt(static_cast<double>(fixed_size(q, 3))));
}

at::ScalarType logsumexp_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor laid_out_like(const Tensor& values, const Tensor& reference) {
  const Tensor layout = at::empty_like(reference, at::TensorOptions().device(at::kMeta));
  const Tensor same = with_strides(values, layout.strides());
  return same.defined() ? same : at::empty_like(reference).copy_(values);
}

Tensor padded(const Tensor& rows) {
  const int64_t missing = -rows.size(-1) & 7;
  return missing == 0 ? rows : at::constant_pad_nd(rows, {0, missing});
}

Tensor no_random_state(const Call& call) {
  return at::empty({}, call.q.options().dtype(at::kLong));
}

namespace {

Tensor logits(const Call& call, at::ScalarType type) {
  Tensor logits = call.q.to(type).mul(call.scale).matmul(call.k.to(type).transpose(2, 3));
  if (call.causal) {
    const auto options = call.q.options().dtype(at::kBool);
    logits.masked_fill_(at::ones({logits.size(2), logits.size(3)}, options).triu_(1), -kInfinity);
  }
  if (call.hidden.defined()) logits.masked_fill_(call.hidden, -kInfinity);
  return logits;
}

}  // namespace

Attended products(const Call& grouped) {
  const Call call = grouped.expanded();
  const auto type = logsumexp_type(call.q.scalar_type());
  const Tensor scores = logits(call, type);
  const Tensor logsumexp = at::logsumexp(scores, {-1});
  const Tensor weights = scores.sub(logsumexp.unsqueeze(-1)).exp_();
  return {weights.matmul(call.v.to(type)).to(call.q.scalar_type()), logsumexp};
}

AttendGradients products_backward(const Call& grouped, const Tensor& grad_out,
                                  const Attended& attended) {
  const Call call = grouped.expanded();
  const auto type = logsumexp_type(call.q.scalar_type());
  const Tensor weights = logits(call, type).sub_(attended.logsumexp.unsqueeze(-1)).exp_();
  const Tensor grad = grad_out.to(type);
  const Tensor shared = grad.mul(attended.out.to(type)).sum(-1, /*keepdim=*/true);
  const Tensor grad_logits =
      grad.matmul(call.v.to(type).transpose(2, 3)).sub_(shared).mul_(weights).mul_(call.scale);
  const auto stored = [&](const Tensor& t) { return t.to(call.q.scalar_type()); };
  return {stored(grad_logits.matmul(call.k.to(type))),
          stored(grouped.sum_groups(grad_logits.transpose(2, 3).matmul(call.q.to(type)))),
          stored(grouped.sum_groups(weights.transpose(2, 3).matmul(grad)))};
}

}  // namespace lighthouse::ops
