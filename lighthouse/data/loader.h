#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace lighthouse::data {

/// Tokens and the tokens that follow them, both (B, N) int64.
struct Batch {
  at::Tensor tokens;
  at::Tensor targets;
};

/// Streams training text without end, epoch after epoch. An epoch is all documents, one after the
/// other, in an order that is a fixed function of (seed, epoch); documents of more than kPiece
/// bytes count as several, so that one large file is shuffled too. A document ends with byte 0.
///
/// Batches are cut off the stream as it flows: of B sequences of N tokens, sequence b begins at
/// position + b N. So every byte is an input once an epoch, whatever contexts and batches are asked
/// for, and the position, one number, is all the state there is.
class Loader {
 public:
  static constexpr uint64_t kPiece = uint64_t{1} << 20;

  /// @param bytes must outlive the loader and stay as they are; std::invalid_argument if empty
  Loader(const std::vector<uint8_t>& bytes, uint64_t seed);

  /// Throws std::invalid_argument unless both are 1 or more.
  Batch next(int64_t batch, int64_t context);

  /// Tokens handed out so far; seeking restores the stream from there, bit for bit.
  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }
  uint64_t epoch() const { return position_ / bytes_.size(); }

 private:
  using Piece = std::span<const uint8_t>;

  /// Makes `order_` and `ends_` those of that epoch.
  void shuffle(uint64_t epoch);
  /// What follows `position` in the stream, up to the end of its piece.
  Piece rest_of_piece(uint64_t position);

  std::span<const uint8_t> bytes_;
  uint64_t seed_;
  uint64_t position_ = 0;
  uint64_t shuffled_epoch_;
  std::vector<Piece> pieces_;   ///< in the order of the text
  std::vector<Piece> order_;    ///< in the order of the epoch
  std::vector<uint64_t> ends_;  ///< where each piece of `order_` ends in the epoch
};

/// Held-out batches of one sequence of `context` tokens each: at most `sequences`, evenly spread
/// over `bytes` and without overlap, the same in every call. Throws std::invalid_argument where
/// the bytes are too few for one, or a count is below 1.
std::vector<Batch> held_out_batches(const std::vector<uint8_t>& bytes, int64_t sequences,
                                    int64_t context);

}  // namespace lighthouse::data
