#include "lighthouse/ops/documents.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cummax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

#ifndef NDEBUG
#include <ATen/ops/_assert_async.h>
#endif

namespace lighthouse::ops {
namespace {

using at::Tensor;

/// Where looking costs next to nothing: throws, naming the first start that is wrong.
void check_starts(const Tensor& starts, int64_t tokens) {
  const Tensor contiguous = starts.contiguous();
  for (int64_t b = 0; b < starts.size(0); ++b) {
    const int32_t* const row = contiguous.const_data_ptr<int32_t>() + b * starts.size(1);
    TORCH_CHECK_VALUE(row[0] == 0, "document_starts[", b, "][0] is ", row[0],
                      "; the first document must start at 0");
    for (int64_t d = 1; d < starts.size(1); ++d) {
      const bool ends = row[d] == tokens;
      TORCH_CHECK_VALUE(ends || (row[d] > row[d - 1] && row[d] < tokens), "document_starts[", b,
                        "][", d, "] is ", row[d], ", after ", row[d - 1],
                        "; the starts must rise, below the ", tokens,
                        " tokens, and end with as many ", tokens, " as there are fewer documents");
    }
  }
}

/// The starts (B, M), then N: the borders of the documents, which rise whatever the starts are.
Tensor document_borders_kernel(const Tensor& document_starts, int64_t tokens) {
  TORCH_CHECK_VALUE(document_starts.dim() == 2 && document_starts.sym_size(1) >= 1,
                    "document_starts has the shape ", document_starts.sym_sizes(),
                    "; it must be (batch, documents), with a document at least");
  TORCH_CHECK_TYPE(document_starts.scalar_type() == at::kInt, "document_starts is ",
                   document_starts.scalar_type(), "; it must be ", at::kInt);
  if (document_starts.is_meta()) {
    return at::empty_symint({document_starts.sym_size(0), document_starts.sym_size(1) + 1},
                            document_starts.options());
  }
  if (document_starts.numel() > 0 && document_starts.is_cpu())
    check_starts(document_starts, tokens);
  const Tensor end = at::full({document_starts.size(0), 1}, tokens, document_starts.options());
  Tensor starts = document_starts.clamp(0, tokens);
  starts.select(1, 0).zero_();
  starts = std::get<0>(at::cummax(starts, 1));
#ifndef NDEBUG
  if (!document_starts.is_cpu()) at::_assert_async(starts.eq(document_starts).all());
#endif
  return at::cat({starts, end}, 1);
}

/// The roots before each of the documents, and in all: (B, M + 1).
Tensor roots_before(const Tensor& borders, const Geometry& g) {
  const Tensor lengths = borders.diff(1, 1);
  const Tensor roots = lengths.add(g.root_window() - 1).floor_divide(g.root_window());
  return at::cat(
      {at::zeros({borders.size(0), 1}, borders.options()), roots.cumsum(1, borders.scalar_type())},
      1);
}

Tensor document_roots_kernel(const Tensor& borders, at::IntArrayRef geometry) {
  const Geometry g = make_geometry(geometry);
  TORCH_CHECK_VALUE(borders.dim() == 2 && borders.sym_size(1) == g.documents + 1,
                    "document_borders has the shape ", borders.sym_sizes(), "; it must be (batch, ",
                    g.documents + 1, ")");
  if (borders.is_meta()) {
    return at::empty_symint({borders.sym_size(0), g.roots, 3}, borders.options());
  }
  const Tensor before = roots_before(borders, g);
  const Tensor root =
      at::arange(g.roots, borders.options()).expand({borders.size(0), g.roots}).contiguous();
  // The last document that begins at the root or before it: of those without a token none.
  const Tensor found = at::searchsorted(before, root, /*out_int32=*/false, /*right=*/true).sub_(1);
  const Tensor document = found.clamp_max(g.documents - 1);
  const Tensor begin = borders.gather(1, document), end = borders.gather(1, document.add(1));
  const Tensor first = root.sub(before.gather(1, document)).mul_(g.root_window()).add_(begin);
  const Tensor table = at::stack({first, begin, end}, 2);
  return table.mul_(found.lt(g.documents).unsqueeze(2));
}

}  // namespace

Documents documents_of(const std::optional<Tensor>& document_roots, const Geometry& geometry,
                       const c10::SymInt& batch, at::Device device) {
  TORCH_CHECK_VALUE(geometry.documents == 1 || document_roots, "geometry has ", geometry.documents,
                    " documents, but there are no document_roots");
  if (!document_roots) return {};
  check_tensor(*document_roots, "document_roots", {batch, geometry.roots, 3}, at::kInt, device);
  TORCH_CHECK_VALUE(document_roots->is_contiguous(), "document_roots must be contiguous");
  static_assert(sizeof(Root) == 3 * sizeof(int32_t));
  if (document_roots->is_meta() || geometry.levels == 1) return {};
  return {static_cast<const Root*>(document_roots->const_data_ptr())};
}

Tensor piece_borders(const Tensor& document_borders, int64_t tokens, int64_t local,
                     int64_t local_shift) {
  const int64_t first = local_shift > 0 ? local_shift : local;
  if (first >= tokens) return document_borders;
  const Tensor cuts = at::arange(first, tokens, local, document_borders.options());
  return std::get<0>(
      at::cat({document_borders,
               cuts.unsqueeze(0).expand_symint({document_borders.sym_size(0), cuts.sym_size(0)})},
              1)
          .sort(1));
}

Tensor row_borders(const Tensor& document_borders, const Tensor& slots, const Geometry& g) {
  if (slots.is_meta()) {
    return at::empty_symint({slots.sym_size(0), slots.sym_size(1), g.documents + 2},
                            document_borders.options());
  }
  const Tensor before = roots_before(document_borders, g);
  const std::vector<int64_t> sizes{slots.size(0), slots.size(1), before.size(1)};
  const Tensor end = at::full({sizes[0], sizes[1], 1}, g.rows, document_borders.options());
  if (g.levels == 1) return at::cat({before.unsqueeze(1).expand(sizes), end}, 2);
  // In post-order a root's row is the last of its tree, and the next tree follows.
  const Tensor ends =
      slots.narrow(2, g.coarse(g.root_level(), 0), g.roots).bitwise_right_shift(1).add_(1);
  const Tensor begins = at::cat({at::zeros({sizes[0], sizes[1], 1}, ends.options()), ends}, 2);
  return at::cat({begins.gather(2, before.to(at::kLong).unsqueeze(1).expand(sizes)), end}, 2);
}

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library, "document_borders(Tensor document_starts, int tokens) -> Tensor borders",
         document_borders_kernel);
  define(library, "document_roots(Tensor document_borders, int[] geometry) -> Tensor roots",
         document_roots_kernel);
}

}  // namespace lighthouse::ops
