#pragma once

#include <algorithm>
#include <cstdint>

#include "lighthouse/core/check.h"
#include "lighthouse/kernels/tensor_view.h"

namespace lighthouse {

/// How N tokens are cut into pieces: at `shift`, `shift` + W, `shift` + 2 W and so on.
///
///     0      shift     + W     + 2 W  N
///     | first | whole 0 | whole 1 | last |
///
/// Stock attention takes pieces of one length as a batch. So there are three *segments*, each of
/// pieces that have the same length: the whole pieces, the one before them and the one after.
/// A segment may be empty.
struct Pieces {
  static constexpr int kSegments = 3;
  enum Segment { kWhole, kFirst, kLast };

  /// Pieces of one length, side by side.
  struct Range {
    int64_t begin;   ///< the first token
    int64_t count;   ///< of pieces
    int64_t length;  ///< of each, in tokens
  };

  /// A piece, and where its log-sum-exps begin: see `lse_index`.
  struct Piece {
    Segment segment;
    int64_t index;   ///< in its segment
    int64_t begin;   ///< the first token
    int64_t length;  ///< in tokens
    int64_t stored;  ///< how many tokens are stored before
  };

  int64_t tokens = 0;  ///< N; 0 for no pieces at all
  int64_t length = 1;  ///< W, or N where W is greater
  int64_t first = 0;   ///< length of the first segment's piece, or 0
  int64_t whole = 0;   ///< how many pieces have the length W
  int64_t last = 0;    ///< length of the last segment's piece, or 0

  Pieces() = default;
  /// Throws std::invalid_argument unless tokens >= 1, local >= 1 and 0 <= shift < local.
  /// @param local W, tokens of a piece; any number, also more than there are tokens
  Pieces(int64_t token_count, int64_t local, int64_t shift)
      : tokens(token_count), length(std::min(local, token_count)) {
    check_argument(tokens >= 1, "the number of tokens is ", tokens, "; it must be at least 1");
    check_argument(local >= 1, "local is ", local, "; a piece must have at least 1 token");
    check_argument(shift >= 0 && shift < local, "local_shift is ", shift,
                   "; it must be at least 0 and below local, which is ", local);
    first = std::min(shift, tokens);
    whole = (tokens - first) / length;
    last = tokens - first - whole * length;
  }

  Range range(Segment segment) const {
    if (segment == kFirst) return {0, first > 0 ? 1 : 0, first};
    if (segment == kLast) return {tokens - last, last > 0 ? 1 : 0, last};
    return {first, whole, length};
  }

  /// The piece that holds a token.
  LIGHTHOUSE_HOST_DEVICE Piece of(int64_t token) const {
    if (token < first) return {kFirst, 0, 0, first, whole * length};
    // 31 bits hold any token, and division is several times faster in 32 bits than in 64.
    const int64_t index = static_cast<uint32_t>(token - first) / static_cast<uint32_t>(length);
    if (index < whole) return {kWhole, index, first + index * length, length, index * length};
    return {kLast, 0, tokens - last, last, tokens - last};
  }

  /// Log-sum-exps of all positions, (B, H, N), are stored piece by piece, so that stock attention
  /// takes those of a segment as they are. For each batch: the whole pieces, then the first, then
  /// the last; for each piece (H, length), contiguous. So the whole pieces of a batch are a
  /// contiguous (pieces, H, W), and a first and a last piece of equal length one of two pieces.
  LIGHTHOUSE_HOST_DEVICE int64_t lse_index(int64_t heads, int64_t batch, int64_t head,
                                           int64_t token) const {
    const Piece piece = of(token);
    return (batch * tokens + piece.stored) * heads + head * piece.length + token - piece.begin;
  }
};

/// Rows of each segment as stock attention gives them for its batch of pieces,
/// (B * pieces, H, length, D) in any layout that Rows allows: those of batch b are the pieces from
/// b * pieces on. Numbers, (B * pieces, H, length), are rows of one element.
template <class T>
struct PieceRows {
  Rows<T> segment[Pieces::kSegments];  ///< by Pieces::Segment; empty ones are not read

  LIGHTHOUSE_HOST_DEVICE T* at(const Pieces& pieces, int64_t batch, int64_t head,
                               int64_t token) const {
    const Pieces::Piece piece = pieces.of(token);
    const int64_t count = piece.segment == Pieces::kWhole ? pieces.whole : 1;
    return segment[piece.segment].at(batch * count + piece.index, head, token - piece.begin);
  }
};

}  // namespace lighthouse
