#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lighthouse::data {

/// The target of a token whose successor is none of its document: it has no loss. PyTorch's losses
/// take it for the same.
inline constexpr int64_t kNoTarget = -100;

/// B rows of N tokens, as a model reads them. A tensor may be undefined where it says what that
/// means.
struct Batch {
  at::Tensor tokens;  ///< (B, N) int64

  /// (B, N) int64: the token that follows each, or kNoTarget. Undefined: only logits are wanted.
  at::Tensor targets = {};

  /// (B, N) int64: where each token stands in its sequence, for the rotary embedding. They need not
  /// rise by one: a rank of context parallelism holds parts of a sequence, and a packed row begins
  /// at 0 again with each document. Attention goes by the order of the row all the same. Undefined:
  /// 0 to N - 1 in every row.
  at::Tensor positions = {};

  /// (B, M) int32: where each document of a row begins, from 0 upwards; N in place of documents
  /// that a row does not have, so that shapes stay the same. Of a part of each row (`chunks`) they
  /// are those of the whole rows. Undefined: each row is one document.
  at::Tensor document_starts = {};

  /// `f` of each tensor that is defined.
  Batch map(const auto& f) const {
    const auto of = [&](const at::Tensor& tensor) { return tensor.defined() ? f(tensor) : tensor; };
    return {of(tokens), of(targets), of(positions), of(document_starts)};
  }

  Batch to(at::Device device) const {
    return map([&](const at::Tensor& tensor) { return tensor.to(device); });
  }

  /// A view of `count` rows.
  Batch rows(int64_t first, int64_t count) const {
    return map([&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); });
  }

  /// Of the `count` equal chunks of each row, those of these indices, one after the other, with
  /// their positions: what a rank has of sequences that ranks share. Throws std::invalid_argument
  /// where `count` does not divide the tokens of a row.
  Batch chunks(const std::vector<int64_t>& indices, int64_t count) const;

  /// How many tokens have a loss.
  int64_t count_targets() const;

  /// (B, N) int64: where each token stands in its document, of whole rows.
  at::Tensor places_in_documents() const;
};

}  // namespace lighthouse::data
