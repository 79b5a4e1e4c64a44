#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <vector>

namespace lighthouse::testing {

/// The tokens (dimension 2) that a rank has: chunks r and 2 W - 1 - r of 2 W, or the r-th part.
inline at::Tensor shard_of(const at::Tensor& whole, int64_t rank, int64_t ranks, bool zigzag) {
  if (!zigzag) return whole.chunk(ranks, 2).at(rank).contiguous();
  const std::vector<at::Tensor> chunks = whole.chunk(2 * ranks, 2);
  return at::cat({chunks.at(rank), chunks.at(2 * ranks - 1 - rank)}, 2);
}

/// The reverse, of the shards of all ranks.
inline at::Tensor whole_of(const std::vector<at::Tensor>& shards, bool zigzag) {
  if (!zigzag) return at::cat(shards, 2);
  std::vector<at::Tensor> chunks(2 * shards.size());
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    const std::vector<at::Tensor> two = shards[rank].chunk(2, 2);
    chunks[rank] = two.at(0);
    chunks[chunks.size() - 1 - rank] = two.at(1);
  }
  return at::cat(chunks, 2);
}

}  // namespace lighthouse::testing
