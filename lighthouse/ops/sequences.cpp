#include "lighthouse/ops/sequences.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

#include "lighthouse/ops/attend_call.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// On the CPU, one sequence after the other.

/// Rows of one batch, some of all heads, and neighbouring tokens.
struct Part {
  int64_t batch;
  int64_t group, groups;  ///< of as many as the borders have
  int64_t begin, length;

  /// Of (B, heads, N, ...).
  Tensor of(const Tensor& whole) const {
    const int64_t heads = whole.size(1) / groups;
    return whole.narrow(0, batch, 1).narrow(1, group * heads, heads).narrow(2, begin, length);
  }
};

/// Calls f(part) for every sequence that has a row.
template <class F>
void for_each_sequence(const Tensor& borders_any, int64_t tokens, const F& f) {
  const Tensor borders = borders_any.contiguous();
  const auto* border = borders.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < borders.size(0); ++b) {
    for (int64_t g = 0; g < borders.size(1); ++g, ++border) {
      int64_t begin = 0;
      const auto check = [&](bool rise) {
        TORCH_CHECK_VALUE(rise, "borders[", b, "][", g, "] holds ", *border, " after ", begin,
                          "; they must rise from 0 to the ", tokens, " rows");
      };
      check(*border == 0);
      for (int64_t i = 1; i < borders.size(2); ++i) {
        check(*++border >= begin && *border <= tokens);
        if (*border > begin) f(Part{b, g, borders.size(1), begin, *border - begin});
        begin = *border;
      }
      check(begin == tokens);
    }
  }
}

Attended one_by_one(const Call& call, const Tensor& borders) {
  const Attended whole{at::empty_like(call.q),
                       at::empty(call.q.sizes().slice(0, 3),
                                 call.q.options().dtype(logsumexp_type(call.q.scalar_type())))};
  for_each_sequence(borders, call.q.size(2), [&](const Part& part) {
    const auto [out, logsumexp] =
        attend(part.of(call.q), part.of(call.k), part.of(call.v), call.causal, call.scale);
    part.of(whole.out).copy_(out);
    part.of(whole.logsumexp).copy_(logsumexp);
  });
  return whole;
}

AttendGradients one_by_one_backward(const Call& call, const Tensor& grad_out,
                                    const Attended& attended, const Tensor& borders) {
  const AttendGradients whole{at::empty_like(call.q), at::empty_like(call.k),
                              at::empty_like(call.v)};
  for_each_sequence(borders, call.q.size(2), [&](const Part& part) {
    const auto [q, k, v] = attend_backward(
        part.of(grad_out), part.of(call.q), part.of(call.k), part.of(call.v), part.of(attended.out),
        part.of(attended.logsumexp).contiguous(), call.causal, call.scale);
    part.of(whole.q).copy_(q);
    part.of(whole.k).copy_(k);
    part.of(whole.v).copy_(v);
  });
  return whole;
}

// On a GPU, all at once: the rows of all batches (and, where each has borders of its own, of all
// key/value heads) follow one another.

bool flash_takes_sequences(const Tensor& q) {
  return q.is_cuda() && (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf) &&
         q.size(3) <= 256 && at::globalContext().userEnabledFlashSDP();
}

/// (B, heads, N, ...) -> (B groups N, heads / groups, ...). A view where strides allow.
Tensor in_a_row(const Tensor& rows, int64_t groups) {
  return rows.unflatten(1, {groups, -1}).transpose(2, 3).flatten(0, 2);
}
/// Back to (B, heads, N, ...).
Tensor out_of_row(const Tensor& rows, const Tensor& borders, int64_t tokens) {
  return rows.unflatten(0, {borders.size(0), borders.size(1), tokens})
      .transpose(2, 3)
      .flatten(1, 2);
}

/// Where each sequence begins among all rows, and the last ends.
Tensor cumulative_lengths(const Tensor& borders, int64_t tokens) {
  constexpr int64_t kMostSequences = 65535;  // that a CUDA grid has along y
  const int64_t all = borders.size(0) * borders.size(1);
  const int64_t sequences = all * (borders.size(2) - 1);
  TORCH_CHECK_VALUE(sequences <= kMostSequences, "borders has the shape ", borders.sizes(), ", ",
                    sequences, " sequences; PyTorch's flash attention takes at most ",
                    kMostSequences, " on a GPU: fewer documents, or a smaller batch");
  TORCH_CHECK_VALUE(all * tokens <= std::numeric_limits<int32_t>::max(), "the batch has ",
                    all * tokens, " rows in all; PyTorch's flash attention takes at most 2^31 - 1");
  const Tensor before = at::arange(0, all * tokens, tokens, borders.options());
  const Tensor begins =
      borders.narrow(2, 0, borders.size(2) - 1).flatten(0, 1).add(before.unsqueeze(1));
  return at::cat({begins.flatten(), at::full({1}, all * tokens, borders.options())});
}

/// The longest sequence, as flash attention takes it: any bound will do, but of 1 it takes a way of
/// its own, in which no sequence may be empty.
int64_t bound(int64_t longest) { return std::max<int64_t>(longest, 2); }

Attended flash_sequences(const Call& call, const Tensor& borders, int64_t longest) {
  const int64_t tokens = call.q.size(2), groups = borders.size(1);
  const Tensor lengths = cumulative_lengths(borders, tokens);
  const auto rows = [&](const Tensor& t) { return in_a_row(padded(t), groups); };
  const auto results = at::_flash_attention_forward(
      rows(call.q), rows(call.k), rows(call.v), lengths, lengths, bound(longest), bound(longest),
      0.0, call.causal, false, call.scale);
  // (heads / groups, rows)
  const Tensor logsumexp = std::get<1>(results).transpose(0, 1);
  return {out_of_row(std::get<0>(results), borders, tokens).narrow(3, 0, call.q.size(3)),
          out_of_row(logsumexp, borders, tokens)};
}

AttendGradients flash_sequences_backward(const Call& call, const Tensor& grad_out,
                                         const Attended& attended, const Tensor& borders,
                                         int64_t longest) {
  const int64_t tokens = call.q.size(2), groups = borders.size(1);
  const Tensor lengths = cumulative_lengths(borders, tokens), none = no_random_state(call);
  const auto rows = [&](const Tensor& t) { return in_a_row(padded(t), groups); };
  const Tensor logsumexp = in_a_row(attended.logsumexp, groups).transpose(0, 1).contiguous();
  const auto [q, k, v] = at::_flash_attention_backward(
      rows(grad_out), rows(call.q), rows(call.k), rows(call.v), rows(attended.out), logsumexp,
      lengths, lengths, bound(longest), bound(longest), 0.0, call.causal, none, none, call.scale);
  const auto gradient = [&](const Tensor& t) {
    return out_of_row(t, borders, tokens).narrow(3, 0, call.q.size(3));
  };
  return {gradient(q), gradient(k), gradient(v)};
}

/// The call by products, hiding what is of another sequence.
Call hiding(Call call, const Tensor& borders) {
  const int64_t tokens = call.q.size(2);
  const Tensor row = at::arange(tokens, borders.options())
                         .expand({borders.size(0), borders.size(1), tokens})
                         .contiguous();
  const Tensor sequence = at::searchsorted(borders, row, /*out_int32=*/true, /*right=*/true);
  call.hidden = sequence.unsqueeze(3).ne(sequence.unsqueeze(2));
  if (borders.size(1) > 1) call.hidden = call.hidden.repeat_interleave(call.heads_per_group(), 1);
  return call;
}

// The operators.

Call checked_sequences(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& borders,
                       int64_t longest, std::optional<double> scale) {
  const SymShape sizes = check_qkv(q, k, v);
  TORCH_CHECK_VALUE(borders.dim() == 3 && borders.sym_size(0) == sizes.batch &&
                        (borders.sym_size(1) == 1 || borders.sym_size(1) == sizes.groups) &&
                        borders.sym_size(2) >= 2,
                    "borders has the shape ", borders.sym_sizes(), "; it must be (", sizes.batch,
                    ", 1 or ", sizes.groups, ", borders), with two at least");
  check_tensor(borders, "borders", borders.sym_sizes(), at::kInt, q.device());
  TORCH_CHECK_VALUE(longest >= 1, "longest is ", longest, "; it must be at least 1");
  return {with_contiguous_rows(q), with_contiguous_rows(k), with_contiguous_rows(v), true,
          scale_of(q, scale)};
}

Tensors2 attend_sequences_kernel(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& borders, int64_t longest,
                                 std::optional<double> scale) {
  const Call call = checked_sequences(q, k, v, borders, longest, scale);
  if (q.is_meta() || q.numel() == 0) {
    const auto options = q.options().dtype(logsumexp_type(q.scalar_type()));
    return {at::empty_like(q), at::empty_symint(q.sym_sizes().slice(0, 3), options)};
  }
  const Attended attended = q.is_cpu()                 ? one_by_one(call, borders)
                            : flash_takes_sequences(q) ? flash_sequences(call, borders, longest)
                                                       : products(hiding(call, borders));
  // As at::empty has it, strides where a size is 1 included.
  const Tensor logsumexp = attended.logsumexp.reshape({-1}).view(q.sizes().slice(0, 3));
  return {laid_out_like(attended.out, q), logsumexp};
}

Tensors3 attend_sequences_backward_kernel(const Tensor& grad_out_any, const Tensor& q,
                                          const Tensor& k, const Tensor& v, const Tensor& out,
                                          const Tensor& logsumexp, const Tensor& borders,
                                          int64_t longest, std::optional<double> scale) {
  const Call call = checked_sequences(q, k, v, borders, longest, scale);
  check_tensor(grad_out_any, "grad_out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(out, "out", q.sym_sizes(), q.scalar_type(), q.device());
  check_tensor(logsumexp, "logsumexp", q.sym_sizes().slice(0, 3), logsumexp_type(q.scalar_type()),
               q.device());
  if (q.is_meta() || q.numel() == 0) {
    return {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  }
  const Tensor grad_out = with_contiguous_rows(grad_out_any);
  const Attended attended{with_contiguous_rows(out), logsumexp.contiguous()};
  const AttendGradients grads =
      q.is_cpu() ? one_by_one_backward(call, grad_out, attended, borders)
      : flash_takes_sequences(q)
          ? flash_sequences_backward(call, grad_out, attended, borders, longest)
          : products_backward(hiding(call, borders), grad_out, attended);
  return {laid_out_like(grads.q, q), laid_out_like(grads.k, k), laid_out_like(grads.v, v)};
}

class SequencesFunction : public torch::autograd::Function<SequencesFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& borders, int64_t longest,
                               std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp] = attend_sequences(q, k, v, borders, longest, scale);
    context->save_for_backward({q, k, v, out, logsumexp, borders});
    context->mark_non_differentiable({logsumexp});
    context->saved_data["longest"] = longest;
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto s = context->get_saved_variables();
    const auto [grad_q, grad_k, grad_v] = attend_sequences_backward(
        grads[0], s[0], s[1], s[2], s[3], s[4], s[5], context->saved_data["longest"].toInt(),
        context->saved_data["scale"].toOptional<double>());
    return {grad_q, grad_k, grad_v, {}, {}, {}};
  }
};

Tensors2 attend_sequences_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& borders, int64_t longest,
                                   std::optional<double> scale) {
  const auto results = SequencesFunction::apply(q, k, v, borders, longest, scale);
  return {results[0], results[1]};
}

Tensors3 attend_sequences_backward_autograd(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& logsumexp, const Tensor& borders,
                                            int64_t longest, std::optional<double> scale) {
  return no_double_backward("lighthouse::attend_sequences", {grad_out, q, k, v, out, logsumexp},
                            [&] {
                              return attend_sequences_backward(grad_out, q, k, v, out, logsumexp,
                                                               borders, longest, scale);
                            });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  const std::string sequences = "Tensor borders, int longest, float? scale=None) -> ";
  define(library,
         "attend_sequences(Tensor q, Tensor k, Tensor v, " + sequences +
             "(Tensor out, Tensor logsumexp)",
         attend_sequences_kernel, attend_sequences_autograd);
  define(library,
         "attend_sequences_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
         "Tensor logsumexp, " +
             sequences + "(Tensor grad_q, Tensor grad_k, Tensor grad_v)",
         attend_sequences_backward_kernel, attend_sequences_backward_autograd);
}

}  // namespace ops

Attended attend_sequences(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& borders, int64_t longest, std::optional<double> scale) {
  const auto [out, logsumexp] = ops::attend_sequences(q, k, v, borders, longest, scale);
  return {out, logsumexp};
}

AttendGradients attend_sequences_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                          const at::Tensor& k, const at::Tensor& v,
                                          const Attended& attended, const at::Tensor& borders,
                                          int64_t longest, std::optional<double> scale) {
  const auto [grad_q, grad_k, grad_v] = ops::attend_sequences_backward(
      grad_out, q, k, v, attended.out, attended.logsumexp, borders, longest, scale);
  return {grad_q, grad_k, grad_v};
}

}  // namespace lighthouse
