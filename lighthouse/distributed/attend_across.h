#pragma once

#include <functional>

#include "lighthouse/core/words.h"
#include "lighthouse/ops/attend.h"

namespace lighthouse::distributed {

/// How the W ranks that share a sequence give one another what attention needs.
enum class Exchange {
  kHeads,   ///< each gets some heads of all tokens; the result is that of one device
  kGather,  ///< each gets all keys and values
  kRing,    ///< keys and values go round
};

}  // namespace lighthouse::distributed

template <>
inline constexpr std::array lighthouse::kWords<lighthouse::distributed::Exchange>{"heads", "gather",
                                                                                  "ring"};

namespace lighthouse::distributed {

/// The attend stage over a sequence that the W ranks of a process group share, zigzag: it is cut
/// into 2 W equal chunks, of which rank r has the rows of r, and then those of 2 W - 1 - r, so that
/// causal attention is the same work for all. The attentions to the rows of several ranks are
/// merged in float32 (float64 for float64). Differentiable once, by `out`.
///
/// @param q (B, H, 2 s, D), k and v (B, G, 2 s, D), as lighthouse::attend takes them
/// @param exchange gather or ring; the ring needs memory for one other rank's rows alone
/// @throws c10::ValueError, naming the argument
Attended attend_across(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const std::string& group, Exchange exchange,
                       std::optional<double> scale = {});

/// The same in two: what is returned finishes what travels meanwhile. Without gradients.
std::function<Attended()> start_attend_across(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, const std::string& group,
                                              Exchange exchange, std::optional<double> scale = {});

/// Its gradients, where `out` and `logsumexp` may be merged further.
AttendGradients attend_across_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                       const at::Tensor& k, const at::Tensor& v,
                                       const Attended& attended, const std::string& group,
                                       Exchange exchange, std::optional<double> scale = {});
std::function<AttendGradients()> start_attend_across_backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const Attended& attended, const std::string& group, Exchange exchange,
    std::optional<double> scale = {});

}  // namespace lighthouse::distributed
