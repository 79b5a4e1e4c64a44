#pragma once

#include <ATen/core/Tensor.h>

#include "lighthouse/core/config.h"
#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/attention.h"

/// The stages that lighthouse::attention is made of, one by one: for the bench, for inspection, and
/// for an attend stage of one's own. Errors are those of lighthouse::attention.
namespace lighthouse {

/// Documents packed into the rows of a batch, as the stages take them; by default there are none.
struct PackedDocuments {
  std::optional<at::Tensor> borders;  ///< (B, M + 1) int32: the starts, and N
  std::optional<at::Tensor> roots;    ///< (B, R, 3) int32: the table of kernels/documents.h

  /// M, how many a row may have.
  int64_t most() const;
};

/// @param document_starts as lighthouse::attention takes them, of rows as those of q
PackedDocuments packed(const std::optional<at::Tensor>& document_starts, const at::Tensor& q,
                       const Config& config);

/// Throws where the scorer of `config` would see other documents.
void check_scorer(const Config& config, bool has_documents);

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
             const std::optional<TokenScores>& given = {}, const PackedDocuments& documents = {});

/// @param documents that a row may have
Selection select(const Scored& scored, int64_t tokens, const Config& config, int64_t documents = 1);

Gathered gather(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& roots, const Selection& selection, const Config& config,
                const PackedDocuments& documents = {});

/// Stock causal attention over the gathered rows.
Attended attend(const Gathered& gathered, const Config& config);

/// (B, H, S, D) -> (B, H, N, D), stored as (B, N, H, D); differentiable.
at::Tensor scatter(const at::Tensor& gathered_out, const Selection& selection, int64_t tokens,
                   const Config& config);

}  // namespace lighthouse
