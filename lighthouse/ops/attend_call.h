#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "lighthouse/ops/attend.h"

/// What the calls of PyTorch's attention share.
namespace lighthouse::ops {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A call of attention, whose rows are contiguous.
struct Call {
  at::Tensor q, k, v;
  bool causal;
  double scale;
  at::Tensor hidden = {};  ///< (B, 1 or H, N, M) bool: what a query does not attend to anyway, for
                           ///< products; nothing where it is undefined

  bool grouped() const { return q.size(1) != k.size(1); }
  int64_t heads_per_group() const { return q.size(1) / k.size(1); }

  /// With a key/value head for each query head, for kernels that have no groups.
  Call expanded() const;
  /// The gradient of k or v from that of the expanded one.
  at::Tensor sum_groups(const at::Tensor& grad) const;
};

/// The scale given, or D^(-1/2).
double scale_of(const at::Tensor& q, std::optional<double> scale);

/// The type of log-sum-exps.
at::ScalarType logsumexp_type(at::ScalarType type);

/// The same values, with the strides that at::empty_like(reference) has: those that an operator's
/// results have must follow from its arguments alone.
at::Tensor laid_out_like(const at::Tensor& values, const at::Tensor& reference);

/// Flash attention on a GPU takes rows of a multiple of 8 elements.
at::Tensor padded(const at::Tensor& rows);

/// Without dropout the backward of PyTorch's kernels does not read the state of a generator.
at::Tensor no_random_state(const Call& call);

/// Attention of plain products, in the type that sums are taken in.
Attended products(const Call& call);
AttendGradients products_backward(const Call& call, const at::Tensor& grad_out,
                                  const Attended& attended);

}  // namespace lighthouse::ops
