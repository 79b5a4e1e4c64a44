#pragma once

#include <ATen/core/Tensor.h>

#include "lighthouse/core/config.h"
#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/attention.h"

/// The stages that lighthouse::attention is made of, one by one: for the bench, for inspection, and
/// for an attend stage of one's own. Errors are those of lighthouse::attention.
namespace lighthouse {

/// What the score stage yields; none of it is differentiated.
struct Scored {
  at::Tensor scores_q;  ///< (B, G, E) float32, of the coarse entries
  at::Tensor scores_k;  ///< (B, G, E) float32
  at::Tensor roots;     ///< (B, R, H + 2 G, D): the means of the root windows of q, k and v
};

/// The rows of the entries in the sequence, differentiable in the q, k and v gathered from.
struct Gathered {
  at::Tensor q;  ///< (B, H, S, D)
  at::Tensor k;  ///< (B, G, S, D)
  at::Tensor v;  ///< (B, G, S, D)
};

/// With the scorer of `config`, or the scores given in place of it.
Scored score(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Config& config,
             const std::optional<TokenScores>& given = {});

Selection select(const Scored& scored, int64_t tokens, const Config& config);

Gathered gather(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& roots, const Selection& selection, const Config& config);

/// Stock causal attention over the gathered rows.
Attended attend(const Gathered& gathered, const Config& config);

/// (B, H, S, D) -> (B, H, N, D), stored as (B, N, H, D); differentiable.
at::Tensor scatter(const at::Tensor& gathered_out, const Selection& selection, int64_t tokens,
                   const Config& config);

}  // namespace lighthouse
