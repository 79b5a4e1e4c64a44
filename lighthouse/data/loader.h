#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lighthouse::data {

/// Tokens and the tokens that follow them, both (B, N) int64.
struct Batch {
  at::Tensor tokens;
  at::Tensor targets;
};

/// Streams the training bytes: the corpus is walked in pieces of `context` tokens in an order that
/// is a fixed function of (seed, epoch), whatever contexts and batches are asked for. Its position
/// is one number, a part of a run's state: a piece of a new context begins where the last one
/// ended.
class Loader {
 public:
  /// @param bytes must outlive the loader
  Loader(const std::vector<uint8_t>& bytes, uint64_t seed);

  Batch next(int64_t batch, int64_t context);

  /// Tokens handed out so far; seeking restores the stream from there, bit for bit.
  uint64_t position() const;
  void seek(uint64_t position);
};

/// The first `sequences` pieces of `context` tokens, evenly spread over `bytes`: held-out batches,
/// the same in every call. Throws std::invalid_argument where the bytes are too few for one.
std::vector<Batch> held_out_batches(const std::vector<uint8_t>& bytes, int64_t sequences,
                                    int64_t context);

}  // namespace lighthouse::data
