#include "lighthouse/ops/pieces.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/documents.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/sequences.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace ops {

Segments segments_of(const Tensor& rows, const Pieces& pieces) {
  Segments segments;
  for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
    const auto [begin, count, length] = pieces.range(segment);
    if (count == 0) continue;
    segments[segment] = rows.narrow(2, begin, count * length)
                            .unflatten(2, {count, length})
                            .movedim(2, 1)
                            .flatten(0, 1);
  }
  return segments;
}

Segments segments_of_logsumexp(const Tensor& logsumexp, const Pieces& pieces, int64_t heads) {
  Segments segments;
  int64_t stored = 0;
  for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
    const auto [begin, count, length] = pieces.range(segment);
    if (count == 0) continue;
    const Tensor numbers = logsumexp.narrow(1, stored * heads, count * length * heads);
    segments[segment] = numbers.unflatten(1, {count, heads, length}).flatten(0, 1);
    stored += count * length;
  }
  return segments;
}

Tensor joined(const Segments& segments, const Pieces& pieces, const Tensor& layout) {
  for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
    const auto [begin, count, length] = pieces.range(segment);
    if (count * length != pieces.tokens) continue;
    const Tensor split = segments[segment].unflatten(0, {-1, count}).movedim(1, 2);
    if (count > 1 && split.stride(2) != length * split.stride(3)) return {};
    return with_strides(split.flatten(2, 3), layout.strides());
  }
  return {};
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Pieces make_pieces(const Tensor& q, int64_t local, int64_t local_shift) {
  return as_value_error([&] { return Pieces(fixed_size(q, 2), local, local_shift); });
}

at::TensorOptions number_options(const Tensor& q) {
  return q.options().dtype(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

/// A tensor that says how an output of `heads` heads is stored.
Tensor output_layout(const Tensor& q, const c10::SymInt& heads) {
  return empty_tokens_major(q.sym_size(0), heads, fixed_size(q, 2), q.sym_size(3),
                            q.options().device(at::kMeta));
}
/// How a gradient is stored: in the order of q.
Tensor gradient_layout(const Tensor& q, const c10::SymInt& heads) {
  if (q.sym_stride(1) < q.sym_stride(2)) return output_layout(q, heads);
  return at::empty_symint({q.sym_size(0), heads, q.sym_size(2), q.sym_size(3)},
                          q.options().device(at::kMeta));
}
Tensor empty_as(const Tensor& layout, const Tensor& like) {
  return at::empty_strided_symint(layout.sym_sizes(), layout.sym_strides(), like.options());
}

/// How many batch elements are attended to at a time: all, where their pieces lie side by side in
/// memory, else one, as segments_of would copy them.
int64_t batch_at_once(const Tensor& q, const Pieces& pieces) {
  for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
    const auto [begin, count, length] = pieces.range(segment);
    if (count * length == pieces.tokens) return q.size(0);
  }
  return 1;
}

/// Calls `f(i, of)` for each such part i of the batch; `of` takes it of a tensor (B, ...).
template <class F>
void for_batches(const Tensor& q, const Pieces& pieces, const F& f) {
  const int64_t count = batch_at_once(q, pieces);
  for (int64_t i = 0; i * count < q.size(0); ++i) {
    f(static_cast<size_t>(i),
      [=](const Tensor& tensor) { return tensor.narrow(0, i * count, count); });
  }
}

/// Attention inside the pieces, segment by segment.
struct Near {
  Segments out, logsumexp;
};
/// Where near attention is cut. With documents it is inside sequences, and gives whole rows
/// (B, H, N, D): to all other stages these are one piece.
struct Cuts {
  Pieces pieces;
  Tensor borders = {};  ///< (B, 1, C), of sequences; undefined without documents
  int64_t longest = 0;  ///< of a sequence
};

Cuts make_cuts(const Tensor& q, int64_t local, int64_t local_shift,
               const PackedDocuments& documents) {
  const Pieces pieces = make_pieces(q, local, local_shift);
  if (!documents.borders || q.is_meta()) return {.pieces = pieces};
  return {Pieces(pieces.tokens, pieces.tokens, 0),
          piece_borders(*documents.borders, pieces.tokens, local, local_shift).unsqueeze(1),
          pieces.length};
}

Near attend_part(const Tensor& q, const Tensor& k, const Tensor& v, const Cuts& cuts,
                 std::optional<double> scale) {
  const Pieces& pieces = cuts.pieces;
  if (cuts.borders.defined()) {
    const auto [out, logsumexp] = attend_sequences(q, k, v, cuts.borders, cuts.longest, scale);
    return {{out}, {logsumexp}};
  }
  const Segments of_q = segments_of(q, pieces), of_k = segments_of(k, pieces),
                 of_v = segments_of(v, pieces);
  Near near;
  for (size_t i = 0; i < of_q.size(); ++i) {
    if (!of_q[i].defined()) continue;
    std::tie(near.out[i], near.logsumexp[i]) =
        attend(of_q[i], of_k[i], of_v[i], /*causal=*/true, scale);
  }
  return near;
}

/// Its gradients, given the output and the log-sum-exp that it was merged into.
NearSegments attend_part_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                  const Cuts& cuts, std::optional<double> scale) {
  const Pieces& pieces = cuts.pieces;
  if (cuts.borders.defined()) {
    const auto [grad_q, grad_k, grad_v] =
        attend_sequences_backward(grad_out, q, k, v, out, logsumexp.view(out.sizes().slice(0, 3)),
                                  cuts.borders, cuts.longest, scale);
    return {pieces, {grad_q}, {grad_k}, {grad_v}};
  }
  const Segments of_q = segments_of(q, pieces), of_k = segments_of(k, pieces),
                 of_v = segments_of(v, pieces), of_out = segments_of(out, pieces),
                 of_grad = segments_of(grad_out, pieces),
                 of_logsumexp = segments_of_logsumexp(logsumexp, pieces, q.size(1));
  NearSegments near;
  near.pieces = pieces;
  for (size_t i = 0; i < of_q.size(); ++i) {
    if (!of_q[i].defined()) continue;
    std::tie(near.q[i], near.k[i], near.v[i]) =
        attend_backward(of_grad[i], of_q[i], of_k[i], of_v[i], of_out[i], of_logsumexp[i],
                        /*causal=*/true, scale);
  }
  return near;
}

/// The same for the whole batch, part by part.
std::vector<Near> attend_near(const Tensor& q, const Tensor& k, const Tensor& v, const Cuts& cuts,
                              std::optional<double> scale) {
  std::vector<Near> parts;
  for_batches(q, cuts.pieces, [&](size_t, const auto& of) {
    parts.push_back(attend_part(of(q), of(k), of(v), cuts, scale));
  });
  return parts;
}
std::vector<NearSegments> attend_near_backward(const Tensor& grad_out, const Tensor& q,
                                               const Tensor& k, const Tensor& v, const Tensor& out,
                                               const Tensor& logsumexp, const Cuts& cuts,
                                               std::optional<double> scale) {
  std::vector<NearSegments> parts;
  for_batches(q, cuts.pieces, [&](size_t, const auto& of) {
    parts.push_back(attend_part_backward(of(grad_out), of(q), of(k), of(v), of(out), of(logsumexp),
                                         cuts, scale));
  });
  return parts;
}

/// The segments of all parts as one tensor with the layout, where they can be it.
template <class Part>
Tensor joined_parts(const std::vector<Part>& parts, Segments Part::*segments, const Pieces& pieces,
                    const Tensor& layout) {
  return parts.size() == 1 ? joined(parts[0].*segments, pieces, layout) : Tensor();
}

/// Copies the segments to where they belong in (B, H, N, D).
void assemble_into(const Tensor& whole, const Segments& segments, const Pieces& pieces) {
  for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
    const auto [begin, count, length] = pieces.range(segment);
    if (count == 0) continue;
    whole.narrow(2, begin, count * length)
        .unflatten(2, {count, length})
        .copy_(segments[segment].unflatten(0, {-1, count}).movedim(1, 2));
  }
}

/// The segments of each part of the batch as one tensor (B, H, N, D) with the layout: themselves
/// where they can be it.
template <class Part>
Tensor assemble(const std::vector<Part>& parts, Segments Part::*segments, const Pieces& pieces,
                const Tensor& layout, const Tensor& like) {
  if (Tensor whole = joined_parts(parts, segments, pieces, layout); whole.defined()) return whole;
  const Tensor whole = empty_as(layout, like);
  for_batches(like, pieces, [&](size_t i, const auto& of) {
    assemble_into(of(whole), parts[i].*segments, pieces);
  });
  return whole;
}

/// The log-sum-exps of the segments in the order in which they are stored: (B, N H).
Tensor assemble_logsumexp(const std::vector<Near>& parts, int64_t batch) {
  std::vector<Tensor> of_parts;
  for (const Near& near : parts) {
    std::vector<Tensor> segments;
    for (const Tensor& segment : near.logsumexp) {
      if (!segment.defined()) continue;
      segments.push_back(segment.reshape({batch / static_cast<int64_t>(parts.size()), -1}));
    }
    of_parts.push_back(segments.size() == 1 ? segments[0] : at::cat(segments, 1));
  }
  return of_parts.size() == 1 ? of_parts[0] : at::cat(of_parts);
}

void check_merged(const Tensor& grad_out, const Tensor& q, const Tensor& out,
                  const Tensor& logsumexp) {
  check_tensor(grad_out, "grad_out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(out, "out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(logsumexp, "logsumexp", {q.sym_size(0), q.sym_size(2) * q.sym_size(1)},
               number_options(q).dtype().toScalarType(), q.device());
}

// Pieces alone.

Tensors2 attend_pieces_kernel(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                              int64_t local, int64_t local_shift, std::optional<double> scale) {
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  const Pieces pieces = make_pieces(q_any, local, local_shift);
  const Tensor layout = output_layout(q_any, sizes.heads);
  if (q_any.is_meta() || q_any.numel() == 0) {
    return {empty_as(layout, q_any),
            at::empty_symint({sizes.batch, sizes.heads * pieces.tokens}, number_options(q_any))};
  }
  const Tensor q = with_contiguous_rows(q_any), k = with_contiguous_rows(k_any),
               v = with_contiguous_rows(v_any);
  const auto near = attend_near(q, k, v, {pieces}, scale);
  return {assemble(near, &Near::out, pieces, layout, q), assemble_logsumexp(near, q.size(0))};
}

Tensors3 attend_pieces_backward_kernel(const Tensor& grad_out, const Tensor& q_any,
                                       const Tensor& k_any, const Tensor& v_any, const Tensor& out,
                                       const Tensor& logsumexp, int64_t local, int64_t local_shift,
                                       std::optional<double> scale) {
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  const Pieces pieces = make_pieces(q_any, local, local_shift);
  check_merged(grad_out, q_any, out, logsumexp);
  const Tensor layout_q = gradient_layout(q_any, sizes.heads);
  const Tensor layout_kv = gradient_layout(q_any, sizes.groups);
  if (q_any.is_meta() || q_any.numel() == 0) {
    return {empty_as(layout_q, q_any), empty_as(layout_kv, q_any), empty_as(layout_kv, q_any)};
  }
  const Tensor q = with_contiguous_rows(q_any), k = with_contiguous_rows(k_any),
               v = with_contiguous_rows(v_any);
  const auto near =
      attend_near_backward(with_contiguous_rows(grad_out), q, k, v, with_contiguous_rows(out),
                           logsumexp.contiguous(), {pieces}, scale);
  return {assemble(near, &NearSegments::q, pieces, layout_q, q),
          assemble(near, &NearSegments::k, pieces, layout_kv, q),
          assemble(near, &NearSegments::v, pieces, layout_kv, q)};
}

class PiecesFunction : public torch::autograd::Function<PiecesFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, int64_t local, int64_t local_shift,
                               std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp] = attend_pieces(q, k, v, local, local_shift, scale);
    context->save_for_backward({q, k, v, out, logsumexp});
    context->mark_non_differentiable({logsumexp});
    context->saved_data["local"] = local;
    context->saved_data["local_shift"] = local_shift;
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto [grad_q, grad_k, grad_v] = attend_pieces_backward(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], data["local"].toInt(),
        data["local_shift"].toInt(), data["scale"].toOptional<double>());
    return {grad_q, grad_k, grad_v, {}, {}, {}};
  }
};

Tensors2 attend_pieces_autograd(const Tensor& q, const Tensor& k, const Tensor& v, int64_t local,
                                int64_t local_shift, std::optional<double> scale) {
  const auto results = PiecesFunction::apply(q, k, v, local, local_shift, scale);
  return {results[0], results[1]};
}

Tensors3 attend_pieces_backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                         const Tensor& v, const Tensor& out,
                                         const Tensor& logsumexp, int64_t local,
                                         int64_t local_shift, std::optional<double> scale) {
  return no_double_backward("lighthouse::attend_pieces", {grad_out, q, k, v, out, logsumexp}, [&] {
    return attend_pieces_backward(grad_out, q, k, v, out, logsumexp, local, local_shift, scale);
  });
}

}  // namespace

// Pieces and gathered rows.

Tensors6 attend_both_by(const RowsAttention& attend_rows, const Tensor& q_any, const Tensor& k_any,
                        const Tensor& v_any, const Tensor& roots, const Tensor& rows,
                        const Tensor& slots, IntArrayRef geometry, int64_t local,
                        int64_t local_shift, std::optional<double> scale,
                        const PackedDocuments& documents) {
  const Geometry g = make_geometry(geometry);
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  const Cuts cuts = make_cuts(q_any, local, local_shift, documents);
  const Pieces& pieces = cuts.pieces;
  const auto [gathered_q, gathered_k, gathered_v] =
      gather(q_any, k_any, v_any, roots, rows, slots, geometry, documents.roots);
  const auto finish_rows = attend_rows.forward(gathered_q, gathered_k, gathered_v);
  const Tensor layout = output_layout(q_any, sizes.heads);
  if (q_any.is_meta() || q_any.numel() == 0) {
    return {empty_as(layout, q_any),
            at::empty_symint({sizes.batch, sizes.heads * pieces.tokens}, number_options(q_any)),
            gathered_q,
            gathered_k,
            gathered_v,
            finish_rows().logsumexp};
  }
  const Tensor q = with_contiguous_rows(q_any), k = with_contiguous_rows(k_any),
               v = with_contiguous_rows(v_any);
  const auto near = attend_near(q, k, v, cuts, scale);
  const Attended far = finish_rows();
  // In place over near where that is one segment, stored as the output is.
  Tensor out = joined_parts(near, &Near::out, pieces, layout);
  if (!out.defined()) out = empty_as(layout, q);
  const Tensor logsumexp = assemble_logsumexp(near, q.size(0));
  const Documents table = documents_of(documents.roots, g, sizes.batch, q.device());
  for_batches(q, pieces, [&](size_t i, const auto& of) {
    merge_into(near[i].out, near[i].logsumexp, pieces, {of(far.out), of(far.logsumexp)}, of(slots),
               g, of(out), of(logsumexp), table);
  });
  return {out, logsumexp, gathered_q, gathered_k, gathered_v, far.logsumexp};
}

Tensors3 attend_both_backward_by(const RowsAttention& attend_rows, const Tensor& grad_out_any,
                                 const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                 const Tensor& out_any, const Tensor& logsumexp_any,
                                 const Tensor& gathered_q, const Tensor& gathered_k,
                                 const Tensor& gathered_v, const Tensor& gathered_logsumexp,
                                 const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                                 int64_t local, int64_t local_shift, std::optional<double> scale,
                                 const PackedDocuments& documents) {
  const Geometry g = make_geometry(geometry);
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  const Cuts cuts = make_cuts(q_any, local, local_shift, documents);
  const Pieces& pieces = cuts.pieces;
  check_tokens(q_any, "q", g);
  check_merged(grad_out_any, q_any, out_any, logsumexp_any);
  check_rows(rows, g, sizes, q_any.device());
  check_slots(slots, g, sizes, q_any.device());
  check_tensor(gathered_logsumexp, "gathered_logsumexp", {sizes.batch, sizes.heads, g.rows},
               number_options(q_any).dtype().toScalarType(), q_any.device());
  const Tensor layout_q = gradient_layout(q_any, sizes.heads);
  const Tensor layout_kv = gradient_layout(q_any, sizes.groups);
  if (q_any.is_meta() || q_any.numel() == 0) {
    return {empty_as(layout_q, q_any), empty_as(layout_kv, q_any), empty_as(layout_kv, q_any)};
  }
  const Tensor q = with_contiguous_rows(q_any), k = with_contiguous_rows(k_any),
               v = with_contiguous_rows(v_any), out = with_contiguous_rows(out_any),
               grad_out = with_contiguous_rows(grad_out_any);
  const Tensor logsumexp = logsumexp_any.contiguous();

  const Documents table = documents_of(documents.roots, g, sizes.batch, q.device());
  MergedRows merged = merge_backward(grad_out, out, logsumexp, pieces,
                                     gathered_logsumexp.contiguous(), rows, slots, g, table);
  auto finish_rows = attend_rows.backward(merged.grad_out, gathered_q, gathered_k, gathered_v,
                                          {merged.out, gathered_logsumexp});
  merged = {};
  auto near = attend_near_backward(grad_out, q, k, v, out, logsumexp, cuts, scale);
  const AttendGradients far = finish_rows();
  finish_rows = {};  // and what it keeps
  // In place over near's gradients where they are one segment, stored as the results are. Else one
  // of the three is put together first, so that less is there twice.
  const auto joined_grad = [&](Segments NearSegments::*segments, const Tensor& layout) {
    const Tensor whole = joined_parts(near, segments, pieces, layout);
    return whole.defined() ? whole : empty_as(layout, q);
  };
  const Tensor grad_v = assemble(near, &NearSegments::v, pieces, layout_kv, q);
  for_batches(q, pieces,
              [&](size_t i, const auto& of) { near[i].v = segments_of(of(grad_v), pieces); });
  const Tensor grad_k = joined_grad(&NearSegments::k, layout_kv);
  const Tensor grad_q = joined_grad(&NearSegments::q, layout_q);
  for_batches(q, pieces, [&](size_t i, const auto& of) {
    gather_backward_into(of(far.q), of(far.k), of(far.v), of(slots), g, of(grad_q), of(grad_k),
                         of(grad_v), near[i], table);
  });
  return {grad_q, grad_k, grad_v};
}

namespace {

RowsAttention stock_attention(std::optional<double> scale) {
  return {.forward =
              [scale](const Tensor& q, const Tensor& k, const Tensor& v) {
                const Attended rows = lighthouse::attend(q, k, v, /*causal=*/true, scale);
                return [rows] { return rows; };
              },
          .backward =
              [scale](const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Attended& attended) {
                const AttendGradients rows = lighthouse::attend_backward(
                    grad_out, q, k, v, attended, /*causal=*/true, scale);
                return [rows] { return rows; };
              }};
}

/// Among rows of one document.
RowsAttention attention_inside(const Tensor& borders, const Geometry& g,
                               std::optional<double> scale) {
  return {.forward =
              [=, longest = g.rows](const Tensor& q, const Tensor& k, const Tensor& v) {
                const Attended rows =
                    lighthouse::attend_sequences(q, k, v, borders, longest, scale);
                return [rows] { return rows; };
              },
          .backward =
              [=, longest = g.rows](const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Attended& attended) {
                const AttendGradients rows = lighthouse::attend_sequences_backward(
                    grad_out, q, k, v, attended, borders, longest, scale);
                return [rows] { return rows; };
              }};
}

RowsAttention rows_attention(const PackedDocuments& documents, const Tensor& q, const Tensor& k,
                             const Tensor& slots, IntArrayRef geometry,
                             std::optional<double> scale) {
  TORCH_CHECK_VALUE(documents.borders.has_value() == documents.roots.has_value(),
                    "document_borders and document_roots belong together: one of them is given, "
                    "the other is not");
  if (!documents.borders) return stock_attention(scale);
  const Geometry g = make_geometry(geometry);
  check_tensor(*documents.borders, "document_borders", {q.sym_size(0), g.documents + 1}, at::kInt,
               q.device());
  check_slots(slots, g, {q.sym_size(0), q.sym_size(1), k.sym_size(1), q.sym_size(3)}, q.device());
  return attention_inside(row_borders(*documents.borders, slots, g), g, scale);
}

Tensors6 attend_both_kernel(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                            const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                            int64_t local, int64_t local_shift, std::optional<double> scale,
                            const OptionalTensor& document_borders,
                            const OptionalTensor& document_roots) {
  check_qkv(q, k, v);
  const PackedDocuments documents{document_borders, document_roots};
  return attend_both_by(rows_attention(documents, q, k, slots, geometry, scale), q, k, v, roots,
                        rows, slots, geometry, local, local_shift, scale, documents);
}

Tensors3 attend_both_backward_kernel(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                     const Tensor& gathered_q, const Tensor& gathered_k,
                                     const Tensor& gathered_v, const Tensor& gathered_logsumexp,
                                     const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                                     int64_t local, int64_t local_shift,
                                     std::optional<double> scale,
                                     const OptionalTensor& document_borders,
                                     const OptionalTensor& document_roots) {
  check_qkv(q, k, v);
  const PackedDocuments documents{document_borders, document_roots};
  return attend_both_backward_by(rows_attention(documents, q, k, slots, geometry, scale), grad_out,
                                 q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v,
                                 gathered_logsumexp, rows, slots, geometry, local, local_shift,
                                 scale, documents);
}

class BothFunction : public torch::autograd::Function<BothFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& roots, const Tensor& rows,
                               const Tensor& slots, IntArrayRef geometry, int64_t local,
                               int64_t local_shift, std::optional<double> scale,
                               const OptionalTensor& document_borders,
                               const OptionalTensor& document_roots) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp] =
        attend_both(q, k, v, roots, rows, slots, geometry, local, local_shift, scale,
                    document_borders, document_roots);
    context->save_for_backward(
        {q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp, rows,
         slots, document_borders.value_or(Tensor()), document_roots.value_or(Tensor())});
    context->mark_non_differentiable(
        {logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp});
    context->saved_data["geometry"] = geometry.vec();
    context->saved_data["local"] = local;
    context->saved_data["local_shift"] = local_shift;
    context->saved_data["scale"] = scale;
    return {out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto [grad_q, grad_k, grad_v] = attend_both_backward(
        grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10],
        data["geometry"].toIntVector(), data["local"].toInt(), data["local_shift"].toInt(),
        data["scale"].toOptional<double>(), given(s[11]), given(s[12]));
    return {grad_q, grad_k, grad_v, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

Tensors6 attend_both_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& roots, const Tensor& rows, const Tensor& slots,
                              IntArrayRef geometry, int64_t local, int64_t local_shift,
                              std::optional<double> scale, const OptionalTensor& document_borders,
                              const OptionalTensor& document_roots) {
  const auto r = BothFunction::apply(q, k, v, roots, rows, slots, geometry, local, local_shift,
                                     scale, document_borders, document_roots);
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

Tensors3 attend_both_backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                       const Tensor& gathered_q, const Tensor& gathered_k,
                                       const Tensor& gathered_v, const Tensor& gathered_logsumexp,
                                       const Tensor& rows, const Tensor& slots,
                                       IntArrayRef geometry, int64_t local, int64_t local_shift,
                                       std::optional<double> scale,
                                       const OptionalTensor& document_borders,
                                       const OptionalTensor& document_roots) {
  return no_double_backward(
      "lighthouse::attend_both",
      {grad_out, q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp},
      [&] {
        return attend_both_backward(grad_out, q, k, v, out, logsumexp, gathered_q, gathered_k,
                                    gathered_v, gathered_logsumexp, rows, slots, geometry, local,
                                    local_shift, scale, document_borders, document_roots);
      });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  const std::string pieces = "int local, int local_shift=0, float? scale=None";
  const std::string documents = ", Tensor? document_borders=None, Tensor? document_roots=None";
  const std::string grads = " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)";
  define(library,
         "attend_pieces(Tensor q, Tensor k, Tensor v, " + pieces +
             ") -> (Tensor out, Tensor logsumexp)",
         attend_pieces_kernel, attend_pieces_autograd);
  define(library,
         "attend_pieces_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
         "Tensor logsumexp, " +
             pieces + ")" + grads,
         attend_pieces_backward_kernel, attend_pieces_backward_autograd);
  define(library,
         "attend_both(Tensor q, Tensor k, Tensor v, Tensor roots, Tensor rows, Tensor slots, "
         "int[] geometry, " +
             pieces + documents +
             ") -> (Tensor out, Tensor logsumexp, Tensor gathered_q, Tensor gathered_k, "
             "Tensor gathered_v, Tensor gathered_logsumexp)",
         attend_both_kernel, attend_both_autograd);
  define(library,
         "attend_both_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
         "Tensor logsumexp, Tensor gathered_q, Tensor gathered_k, Tensor gathered_v, "
         "Tensor gathered_logsumexp, Tensor rows, Tensor slots, int[] geometry, " +
             pieces + documents + ")" + grads,
         attend_both_backward_kernel, attend_both_backward_autograd);
}

}  // namespace ops
}  // namespace lighthouse
