#include "lighthouse/distributed/attend_both_across.h"

#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/pieces.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::distributed {

at::Tensor fold_chunks(const at::Tensor& tokens) {
  return tokens.unflatten(2, {2, tokens.size(2) / 2}).movedim(2, 1).flatten(0, 1);
}
at::Tensor unfold_chunks(const at::Tensor& chunks) {
  return chunks.unflatten(0, {chunks.size(0) / 2, 2}).movedim(1, 2).flatten(2, 3);
}

namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::Tensors3;
using ops::Tensors6;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

ops::RowsAttention attention_across(std::string_view group_view, std::string_view exchange_word,
                                    std::optional<double> scale) {
  const std::string group(group_view);
  const auto exchange =
      ops::as_value_error([&] { return parse_word<Exchange>(exchange_word, "exchange"); });
  return {
      .forward =
          [=](const Tensor& q, const Tensor& k, const Tensor& v) {
            return [finish = start_attend_across(unfold_chunks(q), unfold_chunks(k),
                                                 unfold_chunks(v), group, exchange, scale)] {
              const auto [out, logsumexp] = finish();
              return Attended{fold_chunks(out), fold_chunks(logsumexp).contiguous()};
            };
          },
      .backward =
          [=](const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
              const Attended& attended) {
            return [finish = start_attend_across_backward(
                        unfold_chunks(grad_out), unfold_chunks(q), unfold_chunks(k),
                        unfold_chunks(v),
                        {unfold_chunks(attended.out), unfold_chunks(attended.logsumexp)}, group,
                        exchange, scale)] {
              const auto [grad_q, grad_k, grad_v] = finish();
              return AttendGradients{fold_chunks(grad_q), fold_chunks(grad_k), fold_chunks(grad_v)};
            };
          }};
}

Tensors6 both_kernel(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                     const Tensor& rows, const Tensor& slots, IntArrayRef geometry, int64_t local,
                     int64_t local_shift, std::string_view group, std::string_view exchange,
                     std::optional<double> scale) {
  return ops::attend_both_by(attention_across(group, exchange, scale), q, k, v, roots, rows, slots,
                             geometry, local, local_shift, scale);
}

Tensors3 both_backward_kernel(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& gathered_q, const Tensor& gathered_k,
                              const Tensor& gathered_v, const Tensor& gathered_logsumexp,
                              const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                              int64_t local, int64_t local_shift, std::string_view group,
                              std::string_view exchange, std::optional<double> scale) {
  return ops::attend_both_backward_by(
      attention_across(group, exchange, scale), grad_out, q, k, v, out, logsumexp, gathered_q,
      gathered_k, gathered_v, gathered_logsumexp, rows, slots, geometry, local, local_shift, scale);
}

const auto& both_operator() {
  static const auto op = ops::handle<decltype(both_kernel)>("lighthouse::attend_both_across");
  return op;
}
const auto& both_backward_operator() {
  static const auto op =
      ops::handle<decltype(both_backward_kernel)>("lighthouse::attend_both_across_backward");
  return op;
}

class BothFunction : public torch::autograd::Function<BothFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& roots, const Tensor& rows,
                               const Tensor& slots, IntArrayRef geometry, int64_t local,
                               int64_t local_shift, std::string_view group,
                               std::string_view exchange, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp] =
        both_operator().call(q, k, v, roots, rows, slots, geometry, local, local_shift, group,
                             exchange, scale);
    context->save_for_backward({q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v,
                                gathered_logsumexp, rows, slots});
    context->mark_non_differentiable(
        {logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp});
    auto& data = context->saved_data;
    data["geometry"] = geometry.vec();
    data["local"] = local;
    data["local_shift"] = local_shift;
    data["group"] = std::string(group);
    data["exchange"] = std::string(exchange);
    data["scale"] = scale;
    return {out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto [grad_q, grad_k, grad_v] = both_backward_operator().call(
        grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10],
        data["geometry"].toIntVector(), data["local"].toInt(), data["local_shift"].toInt(),
        data["group"].toStringRef(), data["exchange"].toStringRef(),
        data["scale"].toOptional<double>());
    return {grad_q, grad_k, grad_v, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

Tensors6 both_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                       const Tensor& rows, const Tensor& slots, IntArrayRef geometry, int64_t local,
                       int64_t local_shift, std::string_view group, std::string_view exchange,
                       std::optional<double> scale) {
  const auto r = BothFunction::apply(q, k, v, roots, rows, slots, geometry, local, local_shift,
                                     group, exchange, scale);
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

Tensors3 both_backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                const Tensor& gathered_q, const Tensor& gathered_k,
                                const Tensor& gathered_v, const Tensor& gathered_logsumexp,
                                const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                                int64_t local, int64_t local_shift, std::string_view group,
                                std::string_view exchange, std::optional<double> scale) {
  return ops::no_double_backward(
      "lighthouse::attend_both_across",
      {grad_out, q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v, gathered_logsumexp},
      [&] {
        return both_backward_operator().call(
            grad_out, q, k, v, out, logsumexp, gathered_q, gathered_k, gathered_v,
            gathered_logsumexp, rows, slots, geometry, local, local_shift, group, exchange, scale);
      });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  const std::string settings =
      "int[] geometry, int local, int local_shift, str group, str exchange, float? scale=None)";
  ops::define(library,
              "attend_both_across(Tensor q, Tensor k, Tensor v, Tensor roots, Tensor rows, "
              "Tensor slots, " +
                  settings +
                  " -> (Tensor out, Tensor logsumexp, Tensor gathered_q, Tensor gathered_k, "
                  "Tensor gathered_v, Tensor gathered_logsumexp)",
              both_kernel, both_autograd);
  ops::define(library,
              "attend_both_across_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, "
              "Tensor out, Tensor logsumexp, Tensor gathered_q, Tensor gathered_k, "
              "Tensor gathered_v, Tensor gathered_logsumexp, Tensor rows, Tensor slots, " +
                  settings + " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
              both_backward_kernel, both_backward_autograd);
}

Tensor attend_both_across(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                          const Tensor& rows, const Tensor& slots, IntArrayRef geometry,
                          int64_t local, int64_t local_shift, const std::string& group,
                          Exchange exchange, std::optional<double> scale) {
  return std::get<0>(both_operator().call(q, k, v, roots, rows, slots, geometry, local, local_shift,
                                          group, to_string(exchange), scale));
}

}  // namespace lighthouse::distributed
