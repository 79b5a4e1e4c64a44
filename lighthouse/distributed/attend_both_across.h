#pragma once

#include <string>

#include "lighthouse/distributed/attend_across.h"

namespace lighthouse::distributed {

/// Pieces and gathered rows as one softmax, where the ranks of a group share the gathered rows, as
/// those of attend_across: the operator lighthouse::attend_both_across. A rank's two chunks lie
/// side by side in the batch, (2 B, H, c, D), and so do the results; the rest is as that of the
/// operator lighthouse::attend_both. Differentiable once in q, k and v.
at::Tensor attend_both_across(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& roots, const at::Tensor& rows,
                              const at::Tensor& slots, at::IntArrayRef geometry, int64_t local,
                              int64_t local_shift, const std::string& group, Exchange exchange,
                              std::optional<double> scale);

/// The two chunks of a rank, side by side in the batch: (B, H, 2 c, ...) -> (2 B, H, c, ...), and
/// back.
at::Tensor fold_chunks(const at::Tensor& tokens);
at::Tensor unfold_chunks(const at::Tensor& chunks);

}  // namespace lighthouse::distributed
