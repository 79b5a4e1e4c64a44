#include "lighthouse/data/batch.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include "lighthouse/core/check.h"

namespace lighthouse::data {

Batch Batch::chunks(const std::vector<int64_t>& indices, int64_t count) const {
  const int64_t length = tokens.size(1), part = length / count;
  check_argument(length % count == 0, "a sequence has ", length, " tokens; to be cut into ", count,
                 " equal chunks it must have a multiple of ", count);
  check_argument(!document_starts.defined(),
                 "the batch has document_starts; a batch that is cut into chunks must have none: "
                 "each of its rows is one document");
  Batch whole = *this;
  if (!positions.defined())
    whole.positions = at::arange(length, tokens.options()).expand_as(tokens);
  return whole.map([&](const at::Tensor& rows) {
    std::vector<at::Tensor> parts;
    for (const int64_t index : indices) parts.push_back(rows.narrow(1, index * part, part));
    return at::cat(parts, 1);
  });
}

}  // namespace lighthouse::data
