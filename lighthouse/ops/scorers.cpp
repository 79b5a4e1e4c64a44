#include "lighthouse/ops/scorers.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/linalg_vector_norm.h>

#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace {

using at::Tensor;

/// The norm of each row, float32. That of a float64 row is taken in float64.
Tensor norms(const Tensor& rows) {
  const auto type = rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::linalg_vector_norm(rows, 2, at::IntArrayRef{-1}, false, type).to(at::kFloat);
}

/// k or v with one head for each query head.
Tensor expand_heads(const Tensor& tensor, int64_t heads) {
  const int64_t own = ops::fixed_size(tensor, 1);
  return heads == own ? tensor : tensor.repeat_interleave(heads / own, 1);
}

}  // namespace

TokenScores norm_scores(const Tensor& q, const Tensor& k) {
  const at::NoGradGuard no_grad;
  return {norms(q), norms(k)};
}

TokenScores dilated_scores(const Tensor& q, const Tensor& k, const Tensor& v, int64_t dilation,
                           std::optional<double> scale) {
  const at::NoGradGuard no_grad;
  const int64_t heads = ops::fixed_size(q, 1);
  const int64_t tokens = ops::fixed_size(q, 2);
  const int64_t groups = ops::fixed_size(k, 1);
  dilation = std::min(dilation, tokens);
  const int64_t length = (tokens + dilation - 1) / dilation;
  // The sub-sequences side by side in the batch; zeros after the end, which no token attends to,
  // make them equally long.
  const auto interleaved = [&](const Tensor& tensor) {
    const int64_t missing = length * dilation - tokens;
    const Tensor whole = missing == 0 ? tensor : at::constant_pad_nd(tensor, {0, 0, 0, missing});
    return whole.unflatten(2, {length, dilation}).movedim(3, 1).flatten(0, 1);
  };
  const auto scores = [&](const Tensor& out) {
    return norms(out).unflatten(0, {-1, dilation}).movedim(1, 3).flatten(2, 3).slice(2, 0, tokens);
  };
  // The second attention has no grouped form, so key/value heads are expanded first.
  const Tensor sub_q = interleaved(q);
  const Tensor sub_k = interleaved(expand_heads(k, heads));
  const Tensor sub_v = interleaved(expand_heads(v, heads));
  const Tensor of_k = scores(attend(sub_k, sub_q, sub_v, /*causal=*/true, scale).out);
  return {scores(attend(sub_q, sub_k, sub_v, /*causal=*/true, scale).out),
          of_k.unflatten(1, {groups, heads / groups}).amax(2)};
}

TokenScores token_scores(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config) {
  switch (config.scorer) {
    case Scorer::kDilated:
      return dilated_scores(q, k, v, config.dilation, config.scale);
    case Scorer::kGla:
      return gla_scores(q, k, v, {}, config.half_life);
    default:
      return norm_scores(q, k);
  }
}

}  // namespace lighthouse
