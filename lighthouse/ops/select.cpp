#include "lighthouse/kernels/select.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>

#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using at::Tensor;

SelectionRule rule_of(std::string_view name) {
  try {
    return parse_selection_rule(name);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::tuple<Tensor, Tensor> select(const Tensor& scores_q, const Tensor& scores_k,
                                  std::string_view selection, at::IntArrayRef geometry) {
  const Geometry g = make_geometry(geometry);
  const SelectionRule rule = rule_of(selection);
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

TORCH_LIBRARY_IMPL(lighthouse, CPU, m) { m.impl("select", select); }
TORCH_LIBRARY_IMPL(lighthouse, CUDA, m) { m.impl("select", select); }
TORCH_LIBRARY_IMPL(lighthouse, Meta, m) { m.impl("select", select); }
TORCH_LIBRARY_IMPL(lighthouse, Autograd, m) {
  m.impl("select", torch::CppFunction::makeFallthrough());
}

}  // namespace lighthouse::ops
