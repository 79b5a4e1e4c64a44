#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

/// The attend stage: PyTorch's own attention as a value, an output and the mass behind it.
///
/// Attention over several sets of keys (blocks of a ring; a piece and the gathered rows) is the
/// mean of the attentions over each, weighted by exp(log-sum-exp). So what gives both can be
/// merged; and PyTorch's backward kernels, given the merged output and log-sum-exp in place of
/// their own, give the exact gradient of the merged attention to each set.
namespace lighthouse {

struct Attended {
  at::Tensor out;        ///< (B, H, N, D), in the type and with the layout of q
  at::Tensor logsumexp;  ///< (B, H, N), natural logarithm; float64 for float64, else float32
};

struct AttendGradients {
  at::Tensor q, k, v;  ///< in the types and with the layouts of q, k and v
};

/// Stock attention of q (B, H, N, D) to k and v (B, G, M, D), with H a multiple of G; float32,
/// float64, bfloat16 or float16. Differentiable once, by `out`.
///
/// PyTorch's switches choose its kernel (at::Context::setSDPUseCuDNN and its like; in Python
/// torch.nn.attention.sdpa_kernel). Where no kernel of PyTorch's takes the arguments and gives the
/// log-sum-exp, as for float64 on a GPU, it is made of products, in memory of N M.
///
/// @param causal a query attends to the keys up to its own place, of which there are as many as
///               queries; else to all
/// @param scale D^(-1/2) if not given
/// @throws c10::ValueError, or c10::TypeError for a wrong type, naming the argument
Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal = true,
                std::optional<double> scale = {});

/// The gradients that attention to k and v contributes, where `out` and `logsumexp` may be those of
/// `attend`, or merged from several.
/// @param grad_out (B, H, N, D), the gradient of `out`
AttendGradients attend_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                const at::Tensor& k, const at::Tensor& v, const Attended& attended,
                                bool causal = true, std::optional<double> scale = {});

}  // namespace lighthouse
