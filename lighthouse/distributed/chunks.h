#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

/// Zigzag: how W ranks share a sequence so that causal attention is the same work for all. It is
/// cut into 2 W equal chunks, of which rank r has r and 2 W - 1 - r, in that order.
namespace lighthouse::distributed {

inline std::vector<int64_t> chunks_of(int64_t rank, int64_t ranks) {
  return {rank, 2 * ranks - 1 - rank};
}

/// What the ranks have of a sequence, (W, ..., n, ...), as that sequence, (..., W n, ...).
/// @param dimension that of the tokens in the sequence
at::Tensor in_sequence(const at::Tensor& of_ranks, int64_t dimension);

/// The reverse, contiguous.
at::Tensor of_ranks(const at::Tensor& sequence, int64_t ranks, int64_t dimension);

}  // namespace lighthouse::distributed
