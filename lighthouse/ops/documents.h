#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lighthouse/kernels/documents.h"

/// Documents packed into the rows of a batch, as the operators take them: of their starts are made,
/// where these are and without a look at them, the borders between documents and the table of
/// roots.
namespace lighthouse::ops {

/// A saved tensor, which is undefined where none was given.
inline std::optional<at::Tensor> given(const at::Tensor& saved) {
  return saved.defined() ? std::optional(saved) : std::nullopt;
}

/// The table of roots, (B, R, 3) int32, for a kernel on that device; none where it is not given, or
/// where roots are tokens.
Documents documents_of(const std::optional<at::Tensor>& document_roots, const Geometry& geometry,
                       const c10::SymInt& batch, at::Device device);

/// The borders (B, C) of documents, and those of pieces too: at `local_shift`, `local_shift` +
/// `local` and so on.
at::Tensor piece_borders(const at::Tensor& document_borders, int64_t tokens, int64_t local,
                         int64_t local_shift);

/// The borders (B, G, C) between the gathered rows of documents, by a selection.
at::Tensor row_borders(const at::Tensor& document_borders, const at::Tensor& slots,
                       const Geometry& geometry);

}  // namespace lighthouse::ops
