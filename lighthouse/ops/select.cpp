#include "lighthouse/kernels/select.h"

#include <ATen/ops/empty.h>

#include <array>

#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> select_kernel(const Tensor& scores_q, const Tensor& scores_k,
                                         std::string_view selection, at::IntArrayRef geometry) {
  const Geometry g = make_geometry(geometry);
  const auto rule =
      as_value_error([&] { return parse_word<SelectionRule>(selection, "selection"); });
  TORCH_CHECK_VALUE(scores_q.dim() == 3, "scores_q has the shape ", scores_q.sym_sizes(),
                    "; it must be (batch, key/value heads, coarse entries)");
  const std::array<c10::SymInt, 3> expected{scores_q.sym_size(0), scores_q.sym_size(1),
                                            g.coarse_entries()};
  check_tensor(scores_q, "scores_q", expected, at::kFloat, scores_q.device());
  check_tensor(scores_k, "scores_k", expected, at::kFloat, scores_q.device());

  const auto options = scores_q.options().dtype(at::kInt);
  const Tensor rows = at::empty_symint({expected[0], expected[1], g.rows}, options);
  const Tensor slots = at::empty_symint(expected, options);
  if (!scores_q.is_meta()) {
    const Shape shape{scores_q.size(0), scores_q.size(1), scores_q.size(1), 1};
    const Tensor contiguous_q = scores_q.contiguous();
    const Tensor contiguous_k = scores_k.contiguous();
    const Select args{g,
                      shape,
                      rule,
                      contiguous_q.const_data_ptr<float>(),
                      contiguous_k.const_data_ptr<float>(),
                      rows.mutable_data_ptr<int32_t>(),
                      slots.mutable_data_ptr<Slot>()};
    run(
        scores_q.device(), shape.batch * shape.groups * g.tiles, g.coarse_entries() / g.tiles,
        [&](int64_t begin, int64_t end) { cpu::select(args, begin, end); },
        [&](auto stream) {
          const Tensor workspace =
              at::empty({cuda::select_workspace_bytes(g, shape)}, options.dtype(at::kByte));
          cuda::select(args, workspace.mutable_data_ptr(), stream);
        });
  }
  return {rows, slots};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         "select(Tensor scores_q, Tensor scores_k, str selection, int[] geometry) -> "
         "(Tensor rows, Tensor slots)",
         select_kernel);
}

}  // namespace lighthouse::ops
