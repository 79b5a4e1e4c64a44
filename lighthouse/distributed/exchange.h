#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

/// Exchanges between the W ranks of a process group, as differentiable operators that take its
/// name: that of a World, or of a group that Python made.
namespace lighthouse::distributed {

/// Heads for tokens. Every tensor is (B, H, n, D), H a multiple of W: all heads of this rank's
/// tokens. The results are (B, H / W, W n, D): this rank's heads of all tokens. Rank r gets the
/// r-th part of the heads.
///
/// @param tensors of one B, n, D, type and device; any strides
/// @param zigzag rank r has chunks r and 2 W - 1 - r of the 2 W equal chunks of the sequence; else
///               the r-th part of it
/// @throws c10::ValueError, naming the tensor and what it must be
std::vector<at::Tensor> exchange_heads(at::TensorList tensors, const std::string& group,
                                       bool zigzag = false);

/// The reverse, and its gradient: (B, H / W, W n, D) -> (B, H, n, D), stored as (B, n, H, D).
std::vector<at::Tensor> exchange_tokens(at::TensorList tensors, const std::string& group,
                                        bool zigzag = false);

}  // namespace lighthouse::distributed
