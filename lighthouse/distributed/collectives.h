#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

/// Collectives over flat tensors, by the names that PyTorch has had for them since 2.13, for
/// earlier versions too. In all our C++, only this file tells versions of PyTorch apart.
namespace lighthouse::distributed {

/// `whole` becomes the `part` of every rank, one after the other.
template <class Group>
auto all_gather_single(Group& processes, at::Tensor& whole, at::Tensor& part) {
  if constexpr (requires { processes.all_gather_single(whole, part); }) {
    return processes.all_gather_single(whole, part);
  } else {
    return processes._allgather_base(whole, part);
  }
}

/// `part` becomes the sum over ranks of this rank's part of `whole`.
template <class Group>
auto reduce_scatter_single(Group& processes, at::Tensor& part, at::Tensor& whole) {
  if constexpr (requires { processes.reduce_scatter_single(part, whole); }) {
    return processes.reduce_scatter_single(part, whole);
  } else {
    return processes._reduce_scatter_base(part, whole);
  }
}

}  // namespace lighthouse::distributed
