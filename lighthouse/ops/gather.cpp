#include "lighthouse/kernels/gather.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/documents.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/pieces.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {

void gather_backward_into(const Tensor& grad_gathered_q, const Tensor& grad_gathered_k,
                          const Tensor& grad_gathered_v, const Tensor& slots_any, const Geometry& g,
                          const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                          const NearSegments& near, const Documents& documents) {
  const Shape shape{grad_q.size(0), grad_q.size(1), grad_k.size(1), grad_q.size(3)};
  const Tensor slots = slots_any.contiguous();
  dispatch(grad_q.scalar_type(), [&]<class T>() {
    const GatherBackward<T> args{.geometry = g,
                                 .shape = shape,
                                 .grad_gathered_q = rows_of<T>(grad_gathered_q),
                                 .grad_gathered_k = rows_of<T>(grad_gathered_k),
                                 .grad_gathered_v = rows_of<T>(grad_gathered_v),
                                 .slots = slots.const_data_ptr<Slot>(),
                                 .grad_q = mutable_rows_of<T>(grad_q),
                                 .grad_k = mutable_rows_of<T>(grad_k),
                                 .grad_v = mutable_rows_of<T>(grad_v),
                                 .near = {.pieces = near.pieces,
                                          .q = piece_rows<T>(near.q),
                                          .k = piece_rows<T>(near.k),
                                          .v = piece_rows<T>(near.v)},
                                 .documents = documents};
    run(
        grad_q.device(), shape.batch * g.roots,
        g.root_window() * (shape.heads + 2 * shape.groups) * shape.dim,
        [&](int64_t begin, int64_t end) { cpu::gather_backward(args, begin, end); },
        [&](auto stream) { cuda::gather_backward(args, stream); });
  });
}

namespace {

Tensors3 gather_kernel(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                       const Tensor& roots, const Tensor& rows, const Tensor& slots,
                       IntArrayRef geometry, const OptionalTensor& document_roots) {
  const Geometry g = make_geometry(geometry);
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  check_tokens(q_any, "q", g);
  const Documents documents = documents_of(document_roots, g, sizes.batch, q_any.device());
  check_rows(rows, g, sizes, q_any.device());
  check_slots(slots, g, sizes, q_any.device());
  check_tensor(roots, "roots",
               {sizes.batch, g.levels > 1 ? g.roots : 0, sizes.heads + 2 * sizes.groups, sizes.dim},
               q_any.scalar_type(), q_any.device());
  const Tensor q = with_contiguous_rows(q_any);
  const Tensor k = with_contiguous_rows(k_any);
  const Tensor v = with_contiguous_rows(v_any);

  const auto empty = [&](const c10::SymInt& heads) {
    return empty_tokens_major(sizes.batch, heads, g.rows, sizes.dim, q.options());
  };
  const Tensor gathered_q = empty(sizes.heads);
  const Tensor gathered_k = empty(sizes.groups);
  const Tensor gathered_v = empty(sizes.groups);
  if (!q.is_meta()) {
    const Shape shape = sizes.known();
    const Tensor contiguous_roots = roots.contiguous();
    const Tensor contiguous_rows = rows.contiguous();
    dispatch(q.scalar_type(), [&]<class T>() {
      const Gather<T> args{g,
                           shape,
                           rows_of<T>(q),
                           rows_of<T>(k),
                           rows_of<T>(v),
                           static_cast<const T*>(contiguous_roots.const_data_ptr()),
                           contiguous_rows.const_data_ptr<int32_t>(),
                           mutable_rows_of<T>(gathered_q),
                           mutable_rows_of<T>(gathered_k),
                           mutable_rows_of<T>(gathered_v),
                           documents};
      run(
          q.device(), shape.batch * g.rows, (shape.heads + 2 * shape.groups) * shape.dim,
          [&](int64_t begin, int64_t end) { cpu::gather(args, begin, end); },
          [&](auto stream) { cuda::gather(args, stream); });
    });
  }
  return {gathered_q, gathered_k, gathered_v};
}

Tensors3 gather_backward_kernel(const Tensor& grad_gathered_q, const Tensor& grad_gathered_k,
                                const Tensor& grad_gathered_v, const Tensor& slots,
                                bool heads_major, IntArrayRef geometry,
                                const OptionalTensor& document_roots) {
  const Geometry g = make_geometry(geometry);
  const SymShape sizes =
      check_qkv(grad_gathered_q, grad_gathered_k, grad_gathered_v, "grad_gathered_");
  check_slots(slots, g, sizes, grad_gathered_q.device());
  TORCH_CHECK_VALUE(grad_gathered_q.sym_size(2) == g.rows, "grad_gathered_q has ",
                    grad_gathered_q.sym_size(2), " rows; it must have ", g.rows);
  const Tensor gathered_q = with_contiguous_rows(grad_gathered_q);
  const Tensor gathered_k = with_contiguous_rows(grad_gathered_k);
  const Tensor gathered_v = with_contiguous_rows(grad_gathered_v);

  const auto empty = [&](const c10::SymInt& heads) {
    return heads_major
               ? at::empty_symint({sizes.batch, heads, g.tokens, sizes.dim}, gathered_q.options())
               : empty_tokens_major(sizes.batch, heads, g.tokens, sizes.dim, gathered_q.options());
  };
  const Tensor grad_q = empty(sizes.heads);
  const Tensor grad_k = empty(sizes.groups);
  const Tensor grad_v = empty(sizes.groups);
  if (!gathered_q.is_meta()) {
    gather_backward_into(gathered_q, gathered_k, gathered_v, slots, g, grad_q, grad_k, grad_v, {},
                         documents_of(document_roots, g, sizes.batch, gathered_q.device()));
  }
  return {grad_q, grad_k, grad_v};
}

/// Keeps the slots alone for the backward pass: neither q, k and v nor the gathered rows.
class GatherFunction : public torch::autograd::Function<GatherFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& roots, const Tensor& rows,
                                                const Tensor& slots, IntArrayRef geometry,
                                                const OptionalTensor& document_roots) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({slots, document_roots.value_or(Tensor())});
    context->saved_data["geometry"] = geometry.vec();
    context->saved_data["heads_major"] = q.sym_stride(1) >= q.sym_stride(2);
    auto [gathered_q, gathered_k, gathered_v] =
        gather(q, k, v, roots, rows, slots, geometry, document_roots);
    return {gathered_q, gathered_k, gathered_v};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_q, grad_k, grad_v] = gather_backward(
        grads[0], grads[1], grads[2], saved[0], context->saved_data["heads_major"].toBool(),
        context->saved_data["geometry"].toIntVector(), given(saved[1]));
    return {grad_q, grad_k, grad_v, {}, {}, {}, {}, {}};
  }
};

Tensors3 gather_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                         const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                         const OptionalTensor& document_roots) {
  const auto gathered =
      GatherFunction::apply(q, k, v, roots, rows, slots, geometry, document_roots);
  return {gathered[0], gathered[1], gathered[2]};
}

Tensors3 gather_backward_autograd(const Tensor& grad_gathered_q, const Tensor& grad_gathered_k,
                                  const Tensor& grad_gathered_v, const Tensor& slots,
                                  bool heads_major, IntArrayRef geometry,
                                  const OptionalTensor& document_roots) {
  return no_double_backward(
      "lighthouse::gather", {grad_gathered_q, grad_gathered_k, grad_gathered_v}, [&] {
        return gather_backward(grad_gathered_q, grad_gathered_k, grad_gathered_v, slots,
                               heads_major, geometry, document_roots);
      });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         "gather(Tensor q, Tensor k, Tensor v, Tensor roots, Tensor rows, Tensor slots, "
         "int[] geometry, Tensor? document_roots=None) -> "
         "(Tensor gathered_q, Tensor gathered_k, Tensor gathered_v)",
         gather_kernel, gather_autograd);
  define(library,
         "gather_backward(Tensor grad_gathered_q, Tensor grad_gathered_k, Tensor grad_gathered_v, "
         "Tensor slots, bool heads_major, int[] geometry, Tensor? document_roots=None) -> "
         "(Tensor grad_q, Tensor grad_k, Tensor grad_v)",
         gather_backward_kernel, gather_backward_autograd);
}

}  // namespace lighthouse::ops
