#include "lighthouse/data/batch.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/searchsorted.h>

#include "lighthouse/core/check.h"

namespace lighthouse::data {

Batch Batch::chunks(const std::vector<int64_t>& indices, int64_t count) const {
  const int64_t length = tokens.size(1), part = length / count;
  check_argument(length % count == 0, "a sequence has ", length, " tokens; to be cut into ", count,
                 " equal chunks it must have a multiple of ", count);
  Batch whole = *this;
  whole.document_starts.reset();
  if (!positions.defined())
    whole.positions = at::arange(length, tokens.options()).expand_as(tokens);
  Batch of_chunks = whole.map([&](const at::Tensor& rows) {
    std::vector<at::Tensor> parts;
    for (const int64_t index : indices) parts.push_back(rows.narrow(1, index * part, part));
    return at::cat(parts, 1);
  });
  of_chunks.document_starts = document_starts;
  return of_chunks;
}

int64_t Batch::count_targets() const { return targets.ne(kNoTarget).sum().item<int64_t>(); }

at::Tensor Batch::places_in_documents() const {
  const at::Tensor counted = at::arange(tokens.size(1), tokens.options()).expand_as(tokens);
  if (!document_starts.defined()) return counted;
  const at::Tensor starts = document_starts.to(at::kLong);
  const at::Tensor document = at::searchsorted(starts, counted.contiguous(), /*out_int32=*/false,
                                               /*right=*/true);
  return counted - starts.gather(1, document - 1);
}

}  // namespace lighthouse::data
