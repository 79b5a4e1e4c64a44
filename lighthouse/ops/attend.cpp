#include "lighthouse/ops/attend.h"

#include <ATen/SDPBackend.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/ops/attend_call.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace ops {
namespace {

using at::SDPBackend;

/// The kernel that PyTorch takes by its switches; it throws where they leave none.
SDPBackend choice_of(const Call& call) {
  return static_cast<SDPBackend>(at::_fused_sdp_choice(call.q, call.k, call.v, {}, 0.0, call.causal,
                                                       call.scale, call.grouped()));
}
SDPBackend kernel_for(const Call& call) {
  const SDPBackend choice = choice_of(call);
  // One kernel has no groups, and is still worth more than plain products.
  const bool efficient = choice == SDPBackend::math && call.q.is_cuda() && call.grouped() &&
                         choice_of(call.expanded()) == SDPBackend::efficient_attention;
  return efficient ? SDPBackend::efficient_attention : choice;
}

/// The same values (B, H, N, D), stored as (B, N, H, D).
Tensor tokens_major(const Tensor& values) {
  return values.transpose(1, 2).contiguous().transpose(1, 2);
}

Attended flash(const Call& call) {
  if (call.q.is_cpu()) {
    auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
        call.q, call.k, call.v, 0.0, call.causal, {}, call.scale);
    return {out, logsumexp};
  }
  const auto results = at::_scaled_dot_product_flash_attention(
      padded(call.q), padded(call.k), padded(call.v), 0.0, call.causal, false, call.scale);
  return {std::get<0>(results).narrow(3, 0, call.q.size(3)), std::get<1>(results)};
}

AttendGradients flash_backward(const Call& call, const Tensor& grad_out, const Attended& attended) {
  if (call.q.is_cpu()) {
    auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, call.q, call.k, call.v, attended.out, attended.logsumexp, 0.0, call.causal, {},
        call.scale);
    return {q, k, v};
  }
  const int64_t dim = call.q.size(3);
  const Tensor none = no_random_state(call);
  const auto [q, k, v] = at::_scaled_dot_product_flash_attention_backward(
      padded(grad_out), padded(call.q), padded(call.k), padded(call.v), padded(attended.out),
      attended.logsumexp, {}, {}, call.q.size(2), call.k.size(2), 0.0, call.causal, none, none,
      call.scale);
  return {q.narrow(3, 0, dim), k.narrow(3, 0, dim), v.narrow(3, 0, dim)};
}

Attended cudnn(const Call& call) {
  const auto results = at::_scaled_dot_product_cudnn_attention(call.q, call.k, call.v, {},
                                                               /*compute_logsumexpexp=*/true, 0.0,
                                                               call.causal, false, call.scale);
  return {std::get<0>(results), std::get<1>(results).reshape(call.q.sizes().slice(0, 3))};
}

AttendGradients cudnn_backward(const Call& call, const Tensor& grad_out, const Attended& attended) {
  // It keeps what it compiled by the layouts of q, k and v alone: the others must follow from them.
  const Tensor none = no_random_state(call);
  auto [q, k, v] = at::_scaled_dot_product_cudnn_attention_backward(
      laid_out_like(grad_out, call.q), call.q, call.k, call.v, laid_out_like(attended.out, call.q),
      attended.logsumexp.unsqueeze(-1), none, none, {}, {}, {}, call.q.size(2), call.k.size(2), 0.0,
      call.causal, call.scale);
  return {q, k, v};
}

Attended efficient(const Call& grouped) {
  const Call call = grouped.expanded();
  const auto results = at::_scaled_dot_product_efficient_attention(
      call.q, call.k, call.v, {}, /*compute_logsumexpexp=*/true, 0.0, call.causal, call.scale);
  return {std::get<0>(results), std::get<1>(results).narrow(2, 0, call.q.size(2))};
}

AttendGradients efficient_backward(const Call& grouped, const Tensor& grad_out,
                                   const Attended& attended) {
  const Call call = grouped.expanded();
  // It gives the log-sum-exp of a multiple of 32 rows, and takes no other.
  const Tensor logsumexp =
      at::constant_pad_nd(attended.logsumexp, {0, -call.q.size(2) & 31}, kInfinity);
  const Tensor none = no_random_state(call);
  const auto results = at::_scaled_dot_product_efficient_attention_backward(
      tokens_major(grad_out), call.q, call.k, call.v, {}, tokens_major(attended.out), logsumexp,
      none, none, 0.0, {true, true, true, false}, call.causal, call.scale);
  return {std::get<0>(results), grouped.sum_groups(std::get<1>(results)),
          grouped.sum_groups(std::get<2>(results))};
}

Call checked_call(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                  std::optional<double> scale) {
  check_qkv(q, k, v, "", /*same_tokens=*/causal);
  return {with_contiguous_rows(q), with_contiguous_rows(k), with_contiguous_rows(v), causal,
          scale_of(q, scale)};
}

Tensors2 attend_kernel(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                       std::optional<double> scale) {
  const Call call = checked_call(q, k, v, causal, scale);
  if (q.is_meta() || q.numel() == 0) {
    const auto options = q.options().dtype(logsumexp_type(q.scalar_type()));
    return {at::empty_like(q),
            at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, options)};
  }
  const auto attended = [&] {
    switch (kernel_for(call)) {
      case SDPBackend::flash_attention:
        return flash(call);
      case SDPBackend::cudnn_attention:
        return cudnn(call);
      case SDPBackend::efficient_attention:
        return efficient(call);
      default:
        return products(call);
    }
  }();
  // As at::empty has it, strides where a size is 1 included.
  const Tensor logsumexp = attended.logsumexp.reshape({-1}).view(q.sizes().slice(0, 3));
  return {laid_out_like(attended.out, q), logsumexp};
}

Tensors3 attend_backward_kernel(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                bool causal, std::optional<double> scale) {
  const Call call = checked_call(q, k, v, causal, scale);
  check_tensor(grad_out, "grad_out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(out, "out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(logsumexp, "logsumexp", q.sym_sizes().slice(0, 3), logsumexp_type(q.scalar_type()),
               q.device());
  if (q.is_meta() || q.numel() == 0) {
    return {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  }
  const Tensor grad = with_contiguous_rows(grad_out);
  const Attended attended{with_contiguous_rows(out), logsumexp.contiguous()};
  const auto kernel = [&] {
    // Some kernels cannot be differentiated everywhere. The log-sum-exp means the same to all.
    const at::AutoGradMode differentiated(true);
    return kernel_for({call.q.detach().requires_grad_(), call.k, call.v, causal, call.scale});
  }();
  const auto grads = [&] {
    switch (kernel) {
      case SDPBackend::flash_attention:
        return flash_backward(call, grad, attended);
      case SDPBackend::cudnn_attention:
        return cudnn_backward(call, grad, attended);
      case SDPBackend::efficient_attention:
        return efficient_backward(call, grad, attended);
      default:
        return products_backward(call, grad, attended);
    }
  }();
  return {laid_out_like(grads.q, q), laid_out_like(grads.k, k), laid_out_like(grads.v, v)};
}

class AttendFunction : public torch::autograd::Function<AttendFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const Tensor& q, const Tensor& k, const Tensor& v,
                                                bool causal, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp] = attend(q, k, v, causal, scale);
    context->save_for_backward({q, k, v, out, logsumexp});
    context->mark_non_differentiable({logsumexp});
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto [grad_q, grad_k, grad_v] = attend_backward(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
        context->saved_data["causal"].toBool(), context->saved_data["scale"].toOptional<double>());
    return {grad_q, grad_k, grad_v, {}, {}};
  }
};

Tensors2 attend_autograd(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                         std::optional<double> scale) {
  const auto attended = AttendFunction::apply(q, k, v, causal, scale);
  return {attended[0], attended[1]};
}

Tensors3 attend_backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                  bool causal, std::optional<double> scale) {
  return no_double_backward("lighthouse::attend", {grad_out, q, k, v, out, logsumexp}, [&] {
    return attend_backward(grad_out, q, k, v, out, logsumexp, causal, scale);
  });
}

/// As PyTorch's own attention does, in the type of autocast.
Tensors2 attend_autocast(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                         std::optional<double> scale) {
  const Tensor cast_q = autocast(q), cast_k = autocast(k), cast_v = autocast(v);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  return attend(cast_q, cast_k, cast_v, causal, scale);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         "attend(Tensor q, Tensor k, Tensor v, bool causal=True, float? scale=None) -> "
         "(Tensor out, Tensor logsumexp)",
         attend_kernel, attend_autograd);
  for (const auto key : {c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}) {
    library.impl("attend", torch::dispatch(key, attend_autocast));
  }
  define(library,
         "attend_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
         "Tensor logsumexp, bool causal=True, float? scale=None) -> "
         "(Tensor grad_q, Tensor grad_k, Tensor grad_v)",
         attend_backward_kernel, attend_backward_autograd);
}

}  // namespace ops

Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                std::optional<double> scale) {
  const auto [out, logsumexp] = ops::attend(q, k, v, causal, scale);
  return {out, logsumexp};
}

AttendGradients attend_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                const at::Tensor& k, const at::Tensor& v, const Attended& attended,
                                bool causal, std::optional<double> scale) {
  const auto [grad_q, grad_k, grad_v] =
      ops::attend_backward(grad_out, q, k, v, attended.out, attended.logsumexp, causal, scale);
  return {grad_q, grad_k, grad_v};
}

}  // namespace lighthouse
