#include "lighthouse/kernels/merge.h"

#include <ATen/ops/empty.h>

#include "lighthouse/ops/pieces.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using at::Tensor;

template <class T>
Rows<const accumulator_t<T>> numbers_of(const Tensor& tensor) {
  return rows_of<accumulator_t<T>>(tensor);
}

Shape shape_of(const Tensor& out, const Tensor& slots) {
  return {out.size(0), out.size(1), slots.size(1), out.size(3)};
}

}  // namespace

void merge_into(const Segments& near_out, const Segments& near_logsumexp, const Pieces& pieces,
                const Attended& gathered, const Tensor& slots_any, const Geometry& g,
                const Tensor& out, const Tensor& logsumexp, const Documents& documents) {
  const Shape shape = shape_of(out, slots_any);
  const Tensor slots = slots_any.contiguous();
  dispatch(out.scalar_type(), [&]<class T>() {
    const Merge<T> args{.geometry = g,
                        .shape = shape,
                        .pieces = pieces,
                        .near_out = piece_rows<T>(near_out),
                        .near_lse = piece_rows<accumulator_t<T>>(near_logsumexp),
                        .gathered_out = rows_of<T>(gathered.out),
                        .gathered_lse = numbers_of<T>(gathered.logsumexp),
                        .slots = slots.const_data_ptr<Slot>(),
                        .out = mutable_rows_of<T>(out),
                        .lse = logsumexp.mutable_data_ptr<accumulator_t<T>>(),
                        .documents = documents};
    run(
        out.device(), shape.batch * cpu::merge_windows(g, documents),
        g.pooling * shape.heads * shape.dim,
        [&](int64_t begin, int64_t end) { cpu::merge(args, begin, end); },
        [&](auto stream) { cuda::merge(args, stream); });
  });
}

MergedRows merge_backward(const Tensor& grad_out, const Tensor& out, const Tensor& logsumexp,
                          const Pieces& pieces, const Tensor& gathered_logsumexp,
                          const Tensor& rows_any, const Tensor& slots_any, const Geometry& g,
                          const Documents& documents) {
  const Shape shape = shape_of(out, slots_any);
  const Tensor rows = rows_any.contiguous();
  const Tensor slots = slots_any.contiguous();
  const auto empty = [&] {
    return empty_tokens_major(shape.batch, shape.heads, g.rows, shape.dim, out.options());
  };
  MergedRows merged{empty(), empty()};
  dispatch(out.scalar_type(), [&]<class T>() {
    const MergeBackward<T> args{.geometry = g,
                                .shape = shape,
                                .pieces = pieces,
                                .grad_out = rows_of<T>(grad_out),
                                .out = rows_of<T>(out),
                                .lse = logsumexp.const_data_ptr<accumulator_t<T>>(),
                                .gathered_lse = numbers_of<T>(gathered_logsumexp),
                                .rows = rows.const_data_ptr<int32_t>(),
                                .slots = slots.const_data_ptr<Slot>(),
                                .grad_gathered_out = mutable_rows_of<T>(merged.grad_out),
                                .backward_out = mutable_rows_of<T>(merged.out),
                                .documents = documents};
    run(
        out.device(), shape.batch * g.rows, 4 * shape.heads * shape.dim,
        [&](int64_t begin, int64_t end) { cpu::merge_backward(args, begin, end); },
        [&](auto stream) { cuda::merge_backward(args, stream); });
  });
  return merged;
}

}  // namespace lighthouse::ops
