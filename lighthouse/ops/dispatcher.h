#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>
#include <tuple>

/// The operators of the stages, called through the dispatcher: what torch.ops.lighthouse.* calls.
/// Shapes and rules are those of lighthouse/kernels/<stage>.h, lighthouse/ops/attend.h and
/// lighthouse/ops/pieces.h. `geometry` is [tokens, levels, pooling_factor, budget, tile_budget],
/// and of packed documents how many a row may have; these come as their borders (B, M + 1), and as
/// the table of the roots of a row (kernels/documents.h), (B, R, 3), both int32. Only gather and
/// the attentions (in q, k and v) and scatter (in gathered_out) are differentiable.
namespace lighthouse::ops {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors2 = std::tuple<Tensor, Tensor>;
using Tensors3 = std::tuple<Tensor, Tensor, Tensor>;
using Tensors6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

/// A typed handle of an operator, looked up at the first call.
template <class Signature>
auto handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

#define LIGHTHOUSE_OPERATOR(name, Result, parameters, ...)               \
  inline Result name parameters {                                        \
    static const auto op = handle<decltype(name)>("lighthouse::" #name); \
    return op.call(__VA_ARGS__);                                         \
  }

LIGHTHOUSE_OPERATOR(document_borders, Tensor, (const Tensor& document_starts, int64_t tokens),
                    document_starts, tokens)
LIGHTHOUSE_OPERATOR(document_roots, Tensor, (const Tensor& document_borders, IntArrayRef geometry),
                    document_borders, geometry)

LIGHTHOUSE_OPERATOR(score, Tensors3,
                    (const Tensor& q, const Tensor& k, const Tensor& v, IntArrayRef geometry,
                     const OptionalTensor& document_roots = {}),
                    q, k, v, geometry, document_roots)
LIGHTHOUSE_OPERATOR(roots, Tensor,
                    (const Tensor& q, const Tensor& k, const Tensor& v, IntArrayRef geometry,
                     const OptionalTensor& document_roots = {}),
                    q, k, v, geometry, document_roots)
LIGHTHOUSE_OPERATOR(pool_scores, Tensors2,
                    (const Tensor& tokens_q, const Tensor& tokens_k, IntArrayRef geometry,
                     const OptionalTensor& document_roots = {}),
                    tokens_q, tokens_k, geometry, document_roots)
LIGHTHOUSE_OPERATOR(select, Tensors2,
                    (const Tensor& scores_q, const Tensor& scores_k, std::string_view selection,
                     IntArrayRef geometry),
                    scores_q, scores_k, selection, geometry)
LIGHTHOUSE_OPERATOR(gather, Tensors3,
                    (const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                     const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                     const OptionalTensor& document_roots = {}),
                    q, k, v, roots, rows, slots, geometry, document_roots)
LIGHTHOUSE_OPERATOR(gather_backward, Tensors3,
                    (const Tensor& grad_gathered_q, const Tensor& grad_gathered_k,
                     const Tensor& grad_gathered_v, const Tensor& slots, bool heads_major,
                     IntArrayRef geometry, const OptionalTensor& document_roots = {}),
                    grad_gathered_q, grad_gathered_k, grad_gathered_v, slots, heads_major, geometry,
                    document_roots)
LIGHTHOUSE_OPERATOR(attend, Tensors2,
                    (const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                     std::optional<double> scale),
                    q, k, v, causal, scale)
LIGHTHOUSE_OPERATOR(attend_backward, Tensors3,
                    (const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& out, const Tensor& logsumexp, bool causal,
                     std::optional<double> scale),
                    grad_out, q, k, v, out, logsumexp, causal, scale)
LIGHTHOUSE_OPERATOR(attend_sequences, Tensors2,
                    (const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& borders,
                     int64_t longest, std::optional<double> scale),
                    q, k, v, borders, longest, scale)
LIGHTHOUSE_OPERATOR(attend_sequences_backward, Tensors3,
                    (const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& out, const Tensor& logsumexp, const Tensor& borders,
                     int64_t longest, std::optional<double> scale),
                    grad_out, q, k, v, out, logsumexp, borders, longest, scale)
LIGHTHOUSE_OPERATOR(attend_pieces, Tensors2,
                    (const Tensor& q, const Tensor& k, const Tensor& v, int64_t local,
                     int64_t local_shift, std::optional<double> scale),
                    q, k, v, local, local_shift, scale)
LIGHTHOUSE_OPERATOR(attend_pieces_backward, Tensors3,
                    (const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& out, const Tensor& logsumexp, int64_t local, int64_t local_shift,
                     std::optional<double> scale),
                    grad_out, q, k, v, out, logsumexp, local, local_shift, scale)
LIGHTHOUSE_OPERATOR(attend_both, Tensors6,
                    (const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                     const Tensor& rows, const Tensor& slots, IntArrayRef geometry, int64_t local,
                     int64_t local_shift, std::optional<double> scale,
                     const OptionalTensor& document_borders = {},
                     const OptionalTensor& document_roots = {}),
                    q, k, v, roots, rows, slots, geometry, local, local_shift, scale,
                    document_borders, document_roots)
LIGHTHOUSE_OPERATOR(attend_both_backward, Tensors3,
                    (const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& out, const Tensor& logsumexp, const Tensor& gathered_q,
                     const Tensor& gathered_k, const Tensor& gathered_v,
                     const Tensor& gathered_logsumexp, const Tensor& rows, const Tensor& slots,
                     IntArrayRef geometry, int64_t local, int64_t local_shift,
                     std::optional<double> scale, const OptionalTensor& document_borders = {},
                     const OptionalTensor& document_roots = {}),
                    grad_out, q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v,
                    gathered_logsumexp, rows, slots, geometry, local, local_shift, scale,
                    document_borders, document_roots)
LIGHTHOUSE_OPERATOR(scatter, Tensor,
                    (const Tensor& gathered_out, const Tensor& rows, const Tensor& slots,
                     IntArrayRef geometry),
                    gathered_out, rows, slots, geometry)
LIGHTHOUSE_OPERATOR(scatter_backward, Tensor,
                    (const Tensor& grad_out, const Tensor& rows, IntArrayRef geometry), grad_out,
                    rows, geometry)

#undef LIGHTHOUSE_OPERATOR

}  // namespace lighthouse::ops
