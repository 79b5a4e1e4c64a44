#include "lighthouse/distributed/chunks.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

namespace lighthouse::distributed {

using at::Tensor;

Tensor in_sequence(const Tensor& of_ranks, int64_t dimension) {
  const int64_t tokens = of_ranks.size(dimension + 1);
  const Tensor chunks = of_ranks.unflatten(dimension + 1, {2, tokens / 2}).movedim(0, dimension);
  const Tensor first = chunks.select(dimension + 1, 0), second = chunks.select(dimension + 1, 1);
  return at::cat({first, second.flip(dimension)}, dimension).flatten(dimension, dimension + 1);
}

Tensor of_ranks(const Tensor& sequence, int64_t ranks, int64_t dimension) {
  const Tensor chunks = sequence.unflatten(dimension, {2 * ranks, -1});
  const Tensor first = chunks.narrow(dimension, 0, ranks);
  const Tensor second = chunks.narrow(dimension, ranks, ranks).flip(dimension);
  return at::stack({first, second}, dimension + 1)
      .movedim(dimension, 0)
      .flatten(dimension + 1, dimension + 2)
      .contiguous();
}

}  // namespace lighthouse::distributed
