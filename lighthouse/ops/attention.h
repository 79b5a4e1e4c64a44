#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <variant>

#include "lighthouse/core/config.h"
#include "lighthouse/ops/scorers.h"

namespace lighthouse {

/// What selection yields, per batch and key/value head; never differentiated.
struct Selection {
  at::Tensor rows;   ///< (B, G, S) int32: the entry of each row of the gathered sequence
  at::Tensor slots;  ///< (B, G, E) int32: the slot of each coarse entry (see core/geometry.h)
};

/// What a caller brings: nothing, scores in place of those of `config.scorer` (for models whose q
/// and k say nothing by their norms, or by a scorer with an input of its own), or a whole
/// selection.
using Given = std::variant<std::monostate, TokenScores, Selection>;

/// Scores the tokens and selects (paper: sections on scoring and selection).
///
/// @param q (B, H, N, D), any strides
/// @param k (B, G, N, D), H a multiple of G
/// @param v like k; the norm scorer does not read it
/// @param scores taken in place of those of `config.scorer`
/// @param document_starts as `attention` takes them
/// @throws c10::ValueError, or c10::TypeError for a wrong type (Python: ValueError, TypeError),
///         naming the argument, its value and what it must be
Selection select(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const Config& config = {}, const std::optional<TokenScores>& scores = {},
                 const std::optional<at::Tensor>& document_starts = {});

/// Lighthouse Attention, whatever the length of the gathered sequence: score, select, gather, stock
/// causal attention over S rows, scatter; with pieces (`config.local`), stock causal attention
/// inside each of them too, and merge in place of scatter. Differentiable once in q, k and v.
///
/// @param q (B, H, N, D), k and v (B, G, N, D): float32, float64, bfloat16 or float16, one type and
///          device for all, any strides with a contiguous last dimension without a copy
/// @param given taken in place of scoring, or of selecting
/// @param document_starts (B, M) int32 on the device of q: documents that do not see each other are
///          packed into each row. They begin at these tokens: 0, then rising; a row of fewer than M
///          documents ends with N, the number of tokens. Shapes depend on M alone. Needs pieces
///          (`config.local` > 0), and the norm scorer or scores that are given. On the CPU wrong
///          starts are refused. On a GPU nobody looks: a debug build asserts, and else what is out
///          of range is moved to the nearest number that is in it, and what is out of order to the
///          start before.
/// @return (B, H, N, D), stored as (B, N, H, D), in the type of q
/// @throws c10::ValueError, or c10::TypeError for a wrong type (Python: ValueError, TypeError),
///         naming the argument, its value and what it must be
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const Config& config = {}, const Given& given = {},
                     const std::optional<at::Tensor>& document_starts = {});

/// Attention inside the pieces of `config.local` tokens alone, which documents cut too. Arguments
/// and result as those of `attention`; throws c10::ValueError where there are no pieces.
at::Tensor local_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Config& config,
                           const std::optional<at::Tensor>& document_starts = {});

/// The attend stage, and what "dense" means everywhere: PyTorch's own causal attention.
/// q (B, H, N, D), k and v (B, G, N, D). Which of its kernels it takes (on Hopper cuDNN's where
/// that takes the shape) follows PyTorch's own switches: at::Context::setSDPUseCuDNN and its like,
/// or torch.nn.attention.sdpa_kernel. Inside documents it is always flash attention, or products.
/// @param document_starts as `attention` takes them
at::Tensor dense_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           std::optional<double> scale = {},
                           const std::optional<at::Tensor>& document_starts = {});

/// The length of the gathered sequence over that many tokens.
/// @param documents that a row may have
int64_t gathered_rows(int64_t tokens, const Config& config, int64_t documents = 1);

}  // namespace lighthouse
