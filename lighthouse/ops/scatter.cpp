#include "lighthouse/kernels/scatter.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

/// Positions are tokens here: where there are documents, there are pieces, and merge in its place.
Geometry geometry_without_documents(IntArrayRef geometry) {
  TORCH_CHECK_VALUE(
      geometry.size() == 5, "geometry is ", geometry,
      "; to scatter it must be [tokens, levels, pooling_factor, budget, tile_budget]");
  return make_geometry(geometry);
}

/// The sizes of (B, H, rows, D), with the groups of (B, G, ...) rows or slots.
SymShape check_heads(const Tensor& tensor, const char* name, int64_t rows, const Tensor& map) {
  check_floating(tensor, name);
  TORCH_CHECK_VALUE(tensor.dim() == 4 && tensor.sym_size(1) >= 1 && tensor.sym_size(2) == rows &&
                        tensor.sym_size(3) >= 1,
                    name, " has the shape ", tensor.sym_sizes(), "; it must be (batch, heads, ",
                    rows, ", head_dim), with a head and an element at least");
  TORCH_CHECK_VALUE(
      map.dim() == 3 && map.sym_size(1) >= 1 && tensor.sym_size(1) % map.sym_size(1) == 0,
      "rows and slots have the shape ", map.sym_sizes(), "; they must have 3 dimensions, and the ",
      tensor.sym_size(1), " heads of ", name, " must be a multiple of their second");
  return {tensor.sym_size(0), tensor.sym_size(1), map.sym_size(1), tensor.sym_size(3)};
}

Tensor scatter_kernel(const Tensor& gathered_out, const Tensor& rows, const Tensor& slots,
                      IntArrayRef geometry) {
  const Geometry g = geometry_without_documents(geometry);
  const SymShape sizes = check_heads(gathered_out, "gathered_out", g.rows, slots);
  check_rows(rows, g, sizes, gathered_out.device());
  check_slots(slots, g, sizes, gathered_out.device());
  const Tensor gathered = with_contiguous_rows(gathered_out);
  Tensor out =
      empty_tokens_major(sizes.batch, sizes.heads, g.tokens, sizes.dim, gathered.options());
  if (!gathered.is_meta()) {
    const Shape shape = sizes.known();
    const Tensor contiguous_slots = slots.contiguous();
    dispatch(gathered.scalar_type(), [&]<class T>() {
      const Scatter<T> args{g, shape, rows_of<T>(gathered), contiguous_slots.const_data_ptr<Slot>(),
                            mutable_rows_of<T>(out)};
      run(
          gathered.device(), shape.batch * cpu::scatter_windows(g),
          g.root_window() * shape.heads * shape.dim,
          [&](int64_t begin, int64_t end) { cpu::scatter(args, begin, end); },
          [&](auto stream) { cuda::scatter(args, stream); });
    });
  }
  return out;
}

Tensor scatter_backward_kernel(const Tensor& grad_out_any, const Tensor& rows,
                               IntArrayRef geometry) {
  const Geometry g = geometry_without_documents(geometry);
  const SymShape sizes = check_heads(grad_out_any, "grad_out", g.tokens, rows);
  check_rows(rows, g, sizes, grad_out_any.device());
  const Tensor grad_out = with_contiguous_rows(grad_out_any);
  Tensor grad_gathered_out =
      empty_tokens_major(sizes.batch, sizes.heads, g.rows, sizes.dim, grad_out.options());
  if (!grad_out.is_meta()) {
    const Shape shape = sizes.known();
    const Tensor contiguous_rows = rows.contiguous();
    dispatch(grad_out.scalar_type(), [&]<class T>() {
      const ScatterBackward<T> args{g, shape, rows_of<T>(grad_out),
                                    contiguous_rows.const_data_ptr<int32_t>(),
                                    mutable_rows_of<T>(grad_gathered_out)};
      run(
          grad_out.device(), shape.batch * g.rows, 4 * shape.heads * shape.dim,
          [&](int64_t begin, int64_t end) { cpu::scatter_backward(args, begin, end); },
          [&](auto stream) { cuda::scatter_backward(args, stream); });
    });
  }
  return grad_gathered_out;
}

class ScatterFunction : public torch::autograd::Function<ScatterFunction> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& gathered_out,
                        const Tensor& rows, const Tensor& slots, IntArrayRef geometry) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({rows});
    context->saved_data["geometry"] = geometry.vec();
    return scatter(gathered_out, rows, slots, geometry);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    return {scatter_backward(grads[0], context->get_saved_variables()[0],
                             context->saved_data["geometry"].toIntVector()),
            {},
            {},
            {}};
  }
};

Tensor scatter_autograd(const Tensor& gathered_out, const Tensor& rows, const Tensor& slots,
                        IntArrayRef geometry) {
  return ScatterFunction::apply(gathered_out, rows, slots, geometry);
}

Tensor scatter_backward_autograd(const Tensor& grad_out, const Tensor& rows, IntArrayRef geometry) {
  return no_double_backward("lighthouse::scatter", {grad_out}, [&] {
    return torch::autograd::variable_list{scatter_backward(grad_out, rows, geometry)};
  })[0];
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         "scatter(Tensor gathered_out, Tensor rows, Tensor slots, int[] geometry) -> Tensor out",
         scatter_kernel, scatter_autograd);
  define(library,
         "scatter_backward(Tensor grad_out, Tensor rows, int[] geometry) -> "
         "Tensor grad_gathered_out",
         scatter_backward_kernel, scatter_backward_autograd);
}

}  // namespace lighthouse::ops
