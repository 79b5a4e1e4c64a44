#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <optional>
#include <tuple>

#include "lighthouse/kernels/merge.h"
#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/stages.h"

/// Attention inside pieces, and what is made of it: method, section 11.
namespace lighthouse::ops {

/// A tensor for each segment of pieces (kernels/pieces.h), undefined where that is empty.
using Segments = std::array<at::Tensor, Pieces::kSegments>;

/// The pieces of each segment side by side in the batch: (B, H, N, D) -> (B pieces, H, length, D).
/// A view where strides allow: for one batch, or where all tokens are in whole pieces.
Segments segments_of(const at::Tensor& rows, const Pieces& pieces);

/// Log-sum-exps as Pieces::lse_index stores them: (B, N H) -> (B pieces, H, length).
Segments segments_of_logsumexp(const at::Tensor& logsumexp, const Pieces& pieces, int64_t heads);

/// The tensor (B, H, N, D) that `segments_of` made such segments of; undefined unless one segment
/// has all tokens, and its layout is that of `layout`, (B, H, N, D).
at::Tensor joined(const Segments& segments, const Pieces& pieces, const at::Tensor& layout);

/// The rows of every segment, for a kernel.
template <class T>
PieceRows<const T> piece_rows(const Segments& segments) {
  PieceRows<const T> rows;
  for (size_t i = 0; i < segments.size(); ++i) {
    const at::Tensor& segment = segments[i];
    if (!segment.defined()) continue;
    // Numbers are rows of one element.
    rows.segment[i] = {static_cast<const T*>(segment.const_data_ptr()), segment.stride(0),
                       segment.stride(1), segment.stride(2)};
  }
  return rows;
}

/// The gradients of q, k and v from attention inside pieces.
struct NearSegments {
  Pieces pieces;
  Segments q, k, v;
};

/// The adjoint of gather into `grad_q`, `grad_k` and `grad_v`, (B, H or G, N, D), to which those of
/// `near` are added; these may be the same memory.
void gather_backward_into(const at::Tensor& grad_gathered_q, const at::Tensor& grad_gathered_k,
                          const at::Tensor& grad_gathered_v, const at::Tensor& slots,
                          const Geometry& geometry, const at::Tensor& grad_q,
                          const at::Tensor& grad_k, const at::Tensor& grad_v,
                          const NearSegments& near = {}, const Documents& documents = {});

/// Near and gathered rows as one softmax, into `out` (B, H, N, D) and `logsumexp` (B, N H), which
/// may be the memory of near's.
void merge_into(const Segments& near_out, const Segments& near_logsumexp, const Pieces& pieces,
                const Attended& gathered, const at::Tensor& slots, const Geometry& geometry,
                const at::Tensor& out, const at::Tensor& logsumexp,
                const Documents& documents = {});

/// What the stock backward of the gathered rows takes: the gradient of their output, and what it
/// takes for this output; both (B, H, S, D).
struct MergedRows {
  at::Tensor grad_out;
  at::Tensor out;
};
MergedRows merge_backward(const at::Tensor& grad_out, const at::Tensor& out,
                          const at::Tensor& logsumexp, const Pieces& pieces,
                          const at::Tensor& gathered_logsumexp, const at::Tensor& rows,
                          const at::Tensor& slots, const Geometry& geometry,
                          const Documents& documents = {});

/// The attend stage over the gathered rows: stock, or one that asks for rows elsewhere. Each of the
/// two starts it; what it returns finishes it, when the pieces have been attended to, so that rows
/// may travel meanwhile.
struct RowsAttention {
  using Finish = std::function<Attended()>;
  using FinishBackward = std::function<AttendGradients()>;

  std::function<Finish(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)> forward;
  std::function<FinishBackward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const Attended& attended)>
      backward;
};

/// What the operators attend_both and attend_both_backward compute, by such a stage.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_both_by(
    const RowsAttention& attend_rows, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& roots, const at::Tensor& rows, const at::Tensor& slots,
    at::IntArrayRef geometry, int64_t local, int64_t local_shift, std::optional<double> scale,
    const PackedDocuments& documents = {});
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_both_backward_by(
    const RowsAttention& attend_rows, const at::Tensor& grad_out, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
    const at::Tensor& gathered_q, const at::Tensor& gathered_k, const at::Tensor& gathered_v,
    const at::Tensor& gathered_logsumexp, const at::Tensor& rows, const at::Tensor& slots,
    at::IntArrayRef geometry, int64_t local, int64_t local_shift, std::optional<double> scale,
    const PackedDocuments& documents = {});

}  // namespace lighthouse::ops
