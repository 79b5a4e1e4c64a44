#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "lighthouse/core/config.h"
#include "lighthouse/distributed/attend_across.h"
#include "lighthouse/ops/scorers.h"

/// Context parallelism: attention over a sequence whose tokens the W ranks of a process group
/// share. Every rank calls it at once, with q (B, H, n, D), k and v (B, G, n, D) of its own tokens,
/// n of W n, and gets their outputs; all are differentiable once in q, k and v.
namespace lighthouse::distributed {

/// By heads, each rank computes H / W heads of the whole sequence as one device does: the result
/// is one device's, to the bit where PyTorch's own attention gives a head the same bits wherever it
/// lies (on the CPU, for D of 2 and more). W must divide H; where it does not divide G, k and v are
/// copied, and their gradients are sums over copies.
///
/// By gather or ring the sequence is cut into 2 W equal chunks, of which rank r has r and
/// 2 W - 1 - r. Each chunk selects by itself, with the budget k / (2 W), of which the tile budget
/// is the largest divisor not above m; its pieces begin to count at its own start. Attention is
/// over the gathered rows of all chunks, in order. So the result is by definition that of one
/// device that cuts the sequence into 2 W chunks.
struct Context {
  std::string group;  ///< the name of the process group; empty: this process has whole sequences
  Exchange exchange = Exchange::kHeads;
  bool zigzag =
      false;  ///< by heads: rank r has chunks r and 2 W - 1 - r too, and not the r-th part

  /// Whether it has.
  bool is_zigzag() const { return zigzag || exchange != Exchange::kHeads; }
};

/// lighthouse::attention. Scores given in place of a scorer's are those of the rank's tokens.
/// @param document_starts those of whole sequences, the same on every rank; by heads alone, since
///        a chunk would select by itself from a document that others have parts of
/// @throws c10::ValueError, or c10::TypeError for a wrong type, naming the argument
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const Config& config, const Context& context,
                     const std::optional<TokenScores>& scores = {},
                     const std::optional<at::Tensor>& document_starts = {});

/// lighthouse::local_attention.
/// @param document_starts as `attention` takes them
at::Tensor local_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Config& config, const Context& context,
                           const std::optional<at::Tensor>& document_starts = {});

/// lighthouse::dense_attention: causal over the whole sequence.
/// @param document_starts as `attention` takes them
at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Context& context, std::optional<double> scale = {},
                           const std::optional<at::Tensor>& document_starts = {});

/// Why dense attention is the better choice for ranks with that many tokens each, as
/// lighthouse::dense_because; empty where Lighthouse pays.
/// @param documents that a row may have
std::string dense_because(int64_t rank_tokens, const Config& config, const Context& context,
                          int64_t documents = 1);

/// The settings of one of the 2 W chunks. Throws std::invalid_argument where 2 W does not divide
/// the budget.
Config chunk_config(const Config& config, int64_t ranks);

}  // namespace lighthouse::distributed
