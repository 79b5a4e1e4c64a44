#include "lighthouse/distributed/attend_across.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/distributed/chunks.h"
#include "lighthouse/distributed/collectives.h"
#include "lighthouse/distributed/group.h"
#include "lighthouse/distributed/messages.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/no_double_backward.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::distributed {
namespace {

using at::Tensor;
using ops::Tensors2;
using ops::Tensors3;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::ScalarType sum_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

/// A group as the ranks of a sequence.
class Ranks {
 public:
  explicit Ranks(std::string_view group)
      : processes_(c10d::resolve_process_group(std::string(group))),
        rank_(processes_->getRank()),
        size_(processes_->getSize()) {}

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  /// The rank whose rows arrive after that many steps round the ring.
  int64_t before(int64_t steps) const { return (rank_ - steps + size_) % size_; }

  /// A tensor that a collective makes, when it has arrived.
  struct Coming {
    Tensor from, result;
    c10::intrusive_ptr<c10d::Work> work;
  };
  Tensor finish(const Coming& coming) const {
    with_peers(*processes_, kWhat, [&] {
      if (coming.work) coming.work->wait();
    });
    return coming.result;
  }
  /// (W, ...), what all have.
  Coming start_gather(const Tensor& own) const {
    std::vector<int64_t> shape = own.sizes().vec();
    shape.insert(shape.begin(), size_);
    Coming coming{own, at::empty(shape, own.options()), {}};
    Tensor from = own.view({-1}), to = coming.result.view({-1});
    coming.work =
        with_peers(*processes_, kWhat, [&] { return all_gather_single(*processes_, to, from); });
    return coming;
  }
  /// The sum over ranks of this one's part of (W, ...).
  Coming start_sum_scatter(const Tensor& parts) const {
    Coming coming{parts, at::empty(parts.sizes().slice(1), parts.options()), {}};
    Tensor from = parts.view({-1}), to = coming.result.view({-1});
    coming.work = with_peers(*processes_, kWhat,
                             [&] { return reduce_scatter_single(*processes_, to, from); });
    return coming;
  }

  /// A tensor on its way to the next rank, and that of the rank before on its way here.
  struct Shift {
    Messages messages;
    Tensor received;
  };
  /// @param tag tells shifts apart that are on their way at once
  Shift start_shift(const Tensor& sent, int tag) const {
    Shift shift{Messages(processes_, kWhat, tag), at::empty_like(sent)};
    shift.messages.send(sent, (rank_ + 1) % size_);
    shift.messages.receive(shift.received, before(1));
    shift.messages.start();
    return shift;
  }
  Tensor finish(Shift& shift) const {
    shift.messages.finish();
    return shift.received;
  }

 private:
  static constexpr const char* kWhat = "exchange keys and values";
  c10::intrusive_ptr<c10d::ProcessGroup> processes_;
  int64_t rank_, size_;
};

/// Keys and values as they travel: (2, B, n, G, D).
constexpr int64_t kRowDimension = 2;
Tensor packed(const Tensor& k, const Tensor& v) {
  return at::stack({k.transpose(1, 2), v.transpose(1, 2)});
}
/// Of those, (B, G, n, D).
Tensor keys_of(const Tensor& keys_values) { return keys_values.select(0, 0).transpose(1, 2); }
Tensor values_of(const Tensor& keys_values) { return keys_values.select(0, 1).transpose(1, 2); }

/// Some rows of the sequence that one rank attends to: all of its own rows do, or its second half.
/// What is earlier than both of its chunks, both see; what lies between them, the second.
struct Range {
  int64_t begin, end;
  bool all_queries;

  Tensor of(const Tensor& keys_values) const {
    return keys_values.narrow(kRowDimension, begin, end - begin);
  }
};

/// Of gathered rows: those before the first chunk, and those between the two.
std::vector<Range> gathered_ranges(const Ranks& ranks, int64_t chunk) {
  std::vector<Range> ranges;
  const std::vector<int64_t> own = chunks_of(ranks.rank(), ranks.size());
  const int64_t first = own[0], second = own[1];
  if (first > 0) ranges.push_back({0, first * chunk, true});
  if (second > first + 1) ranges.push_back({(first + 1) * chunk, second * chunk, false});
  return ranges;
}
/// What of another rank's rows a rank sees: the first chunk of one before it, all of one after.
Range ring_range(const Ranks& ranks, int64_t other, int64_t chunk) {
  return other < ranks.rank() ? Range{0, chunk, true} : Range{0, 2 * chunk, false};
}

/// Attention to one range after the other, as one.
class Merged {
 public:
  Merged(Tensor q, std::optional<double> scale, const Attended& first)
      : q_(std::move(q)),
        scale_(scale),
        out_(first.out.to(sum_type(q_.scalar_type()), false, /*copy=*/true)),
        logsumexp_(first.logsumexp.clone()) {}

  void add(const Range& range, const Tensor& keys_values) {
    const int64_t begin = range.all_queries ? 0 : q_.size(2) / 2, count = q_.size(2) - begin;
    const Tensor rows = range.of(keys_values);
    const Attended more = attend(q_.narrow(2, begin, count), keys_of(rows), values_of(rows),
                                 /*causal=*/false, scale_);
    const Tensor out = out_.narrow(2, begin, count);
    const Tensor logsumexp = logsumexp_.narrow(2, begin, count);
    out.lerp_(more.out.to(out.scalar_type()),
              more.logsumexp.sub(logsumexp).sigmoid_().unsqueeze(-1));
    logsumexp.copy_(at::logaddexp(logsumexp, more.logsumexp));
  }

  /// In the type and with the layout of q.
  Attended results() const { return {at::empty_like(q_).copy_(out_), logsumexp_.contiguous()}; }

 private:
  Tensor q_;
  std::optional<double> scale_;
  Tensor out_, logsumexp_;  // in the type of sums
};

/// Gradients of attention to one range after the other, given what it was merged into.
class MergedGradients {
 public:
  MergedGradients(Tensor grad_out, Tensor q, Attended merged, std::optional<double> scale)
      : grad_out_(std::move(grad_out)),
        q_(std::move(q)),
        merged_(std::move(merged)),
        scale_(scale),
        grad_q_(at::zeros_like(q_, q_.options().dtype(sum_type(q_.scalar_type())))) {}

  /// Zeros to add to, for keys and values of these sizes.
  Tensor no_sums(const Tensor& keys_values) const {
    return at::zeros(keys_values.sizes(), grad_q_.options());
  }
  /// Adds to that of q, and in `sums` to those of the range.
  void add(const Range& range, const Tensor& keys_values, const Tensor& sums) {
    const int64_t begin = range.all_queries ? 0 : q_.size(2) / 2, count = q_.size(2) - begin;
    const auto queries = [&](const Tensor& t) { return t.narrow(2, begin, count); };
    const Tensor rows = range.of(keys_values), row_sums = range.of(sums);
    const AttendGradients grads = attend_backward(
        queries(grad_out_), queries(q_), keys_of(rows), values_of(rows),
        {queries(merged_.out), queries(merged_.logsumexp)}, /*causal=*/false, scale_);
    queries(grad_q_).add_(grads.q);
    keys_of(row_sums).add_(grads.k);
    values_of(row_sums).add_(grads.v);
  }
  /// Those of this rank's own rows, to which `others` has what other ranks' queries add.
  AttendGradients finish(const Tensor& k, const Tensor& v,
                         const std::function<Tensor()>& others) const {
    const AttendGradients own =
        attend_backward(grad_out_, q_, k, v, merged_, /*causal=*/true, scale_);
    const Tensor sums = others();
    own.q.add_(grad_q_);
    own.k.add_(keys_of(sums));
    own.v.add_(values_of(sums));
    return own;
  }

 private:
  Tensor grad_out_, q_;
  Attended merged_;
  std::optional<double> scale_;
  Tensor grad_q_;
};

Exchange check(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view exchange) {
  ops::check_qkv(q, k, v);
  const auto how = ops::as_value_error([&] { return parse_word<Exchange>(exchange, "exchange"); });
  TORCH_CHECK_VALUE(how != Exchange::kHeads,
                    "exchange is 'heads'; attend_across takes 'gather' or 'ring'");
  TORCH_CHECK_VALUE(q.size(2) % 2 == 0, "q has ", q.size(2),
                    " rows; a rank has two chunks of equal length, so they must be even");
  return how;
}

bool is_empty(const Tensor& q) { return q.is_meta() || q.numel() == 0; }

/// This rank's queries and the keys and values of all, which begin to travel.
std::function<Attended()> start_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                        std::string_view group, Exchange how,
                                        std::optional<double> scale) {
  const Ranks ranks(group);
  const auto attend_own = [=] { return attend(q, k, v, /*causal=*/true, scale); };
  if (ranks.size() == 1) return attend_own;
  const int64_t chunk = q.size(2) / 2;
  if (how == Exchange::kGather) {
    return [=, gathering = ranks.start_gather(packed(k, v))] {
      Merged merged(q, scale, attend_own());  // while the others' rows are on their way
      const Tensor all = in_sequence(ranks.finish(gathering), kRowDimension);
      for (const Range& range : gathered_ranges(ranks, chunk)) merged.add(range, all);
      return merged.results();
    };
  }
  return [=, first = ranks.start_shift(packed(k, v), 0)] {
    Merged merged(q, scale, attend_own());
    auto shift = first;
    for (int64_t step = 1; step < ranks.size(); ++step) {
      const Tensor visiting = ranks.finish(shift);
      if (step + 1 < ranks.size()) shift = ranks.start_shift(visiting, 0);
      merged.add(ring_range(ranks, ranks.before(step), chunk), visiting);
    }
    return merged.results();
  };
}

/// This rank's own rows come last: the gradients of the others are then on their way home.
std::function<AttendGradients()> start_backward(const Tensor& grad_out, const Tensor& q,
                                                const Tensor& k, const Tensor& v,
                                                const Attended& attended, std::string_view group,
                                                Exchange how, std::optional<double> scale) {
  const Ranks ranks(group);
  if (ranks.size() == 1) {
    return [=] { return attend_backward(grad_out, q, k, v, attended, /*causal=*/true, scale); };
  }
  const int64_t chunk = q.size(2) / 2;
  if (how == Exchange::kGather) {
    return [=, gathering = ranks.start_gather(packed(k, v))] {
      MergedGradients grads(grad_out, q, attended, scale);
      const Tensor all = in_sequence(ranks.finish(gathering), kRowDimension);
      const Tensor sums = grads.no_sums(all);
      for (const Range& range : gathered_ranges(ranks, chunk)) grads.add(range, all, sums);
      const auto scattering = ranks.start_sum_scatter(of_ranks(sums, ranks.size(), kRowDimension));
      return grads.finish(k, v, [&] { return ranks.finish(scattering); });
    };
  }
  return [=, first = ranks.start_shift(packed(k, v), 0)] {
    MergedGradients grads(grad_out, q, attended, scale);
    auto rows = first;
    Tensor visiting = ranks.finish(rows), sums = grads.no_sums(visiting);
    for (int64_t step = 1;; ++step) {
      const bool last = step + 1 == ranks.size();
      if (!last) rows = ranks.start_shift(visiting, 0);
      grads.add(ring_range(ranks, ranks.before(step), chunk), visiting, sums);
      // The gradients of a rank's rows follow them round the ring, and go one step further: home.
      auto shift = ranks.start_shift(sums, 1);
      if (last) return grads.finish(k, v, [&] { return ranks.finish(shift); });
      visiting = ranks.finish(rows);
      sums = ranks.finish(shift);
    }
  };
}

Tensors2 attend_across_kernel(const Tensor& q, const Tensor& k, const Tensor& v,
                              std::string_view group, std::string_view exchange,
                              std::optional<double> scale) {
  const Exchange how = check(q, k, v, exchange);
  const auto [out, logsumexp] = start_attend_across(q, k, v, std::string(group), how, scale)();
  return {out, logsumexp};
}

Tensors3 attend_across_backward_kernel(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                       std::string_view group, std::string_view exchange,
                                       std::optional<double> scale) {
  const Exchange how = check(q, k, v, exchange);
  const auto [grad_q, grad_k, grad_v] = start_attend_across_backward(
      grad_out, q, k, v, {out, logsumexp}, std::string(group), how, scale)();
  return {grad_q, grad_k, grad_v};
}

Tensors2 across(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view group,
                std::string_view exchange, std::optional<double> scale) {
  static const auto op = ops::handle<decltype(attend_across_kernel)>("lighthouse::attend_across");
  return op.call(q, k, v, group, exchange, scale);
}
Tensors3 across_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& out, const Tensor& logsumexp, std::string_view group,
                         std::string_view exchange, std::optional<double> scale) {
  static const auto op =
      ops::handle<decltype(attend_across_backward_kernel)>("lighthouse::attend_across_backward");
  return op.call(grad_out, q, k, v, out, logsumexp, group, exchange, scale);
}

class AcrossFunction : public torch::autograd::Function<AcrossFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, std::string_view group, std::string_view exchange,
                               std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, logsumexp] = across(q, k, v, group, exchange, scale);
    context->save_for_backward({q, k, v, out, logsumexp});
    context->mark_non_differentiable({logsumexp});
    context->saved_data["group"] = std::string(group);
    context->saved_data["exchange"] = std::string(exchange);
    context->saved_data["scale"] = scale;
    return {out, logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto [grad_q, grad_k, grad_v] = across_backward(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], data["group"].toStringRef(),
        data["exchange"].toStringRef(), data["scale"].toOptional<double>());
    return {grad_q, grad_k, grad_v, {}, {}, {}};
  }
};

Tensors2 attend_across_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                std::string_view group, std::string_view exchange,
                                std::optional<double> scale) {
  const auto results = AcrossFunction::apply(q, k, v, group, exchange, scale);
  return {results[0], results[1]};
}

Tensors3 attend_across_backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                         const Tensor& v, const Tensor& out,
                                         const Tensor& logsumexp, std::string_view group,
                                         std::string_view exchange, std::optional<double> scale) {
  return ops::no_double_backward(
      "lighthouse::attend_across", {grad_out, q, k, v, out, logsumexp},
      [&] { return across_backward(grad_out, q, k, v, out, logsumexp, group, exchange, scale); });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  ops::define(library,
              "attend_across(Tensor q, Tensor k, Tensor v, str group, str exchange, "
              "float? scale=None) -> (Tensor out, Tensor logsumexp)",
              attend_across_kernel, attend_across_autograd);
  ops::define(library,
              "attend_across_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
              "Tensor logsumexp, str group, str exchange, float? scale=None) -> "
              "(Tensor grad_q, Tensor grad_k, Tensor grad_v)",
              attend_across_backward_kernel, attend_across_backward_autograd);
}

Attended attend_across(const Tensor& q, const Tensor& k, const Tensor& v, const std::string& group,
                       Exchange exchange, std::optional<double> scale) {
  const auto [out, logsumexp] = across(q, k, v, group, to_string(exchange), scale);
  return {out, logsumexp};
}

std::function<Attended()> start_attend_across(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const std::string& group, Exchange exchange,
                                              std::optional<double> scale) {
  check(q, k, v, to_string(exchange));
  if (!is_empty(q)) return start_forward(q, k, v, group, exchange, scale);
  const auto options = q.options().dtype(sum_type(q.scalar_type()));
  return [=] { return Attended{at::empty_like(q), at::empty(q.sizes().slice(0, 3), options)}; };
}

AttendGradients attend_across_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Attended& attended,
                                       const std::string& group, Exchange exchange,
                                       std::optional<double> scale) {
  const auto [grad_q, grad_k, grad_v] = across_backward(
      grad_out, q, k, v, attended.out, attended.logsumexp, group, to_string(exchange), scale);
  return {grad_q, grad_k, grad_v};
}

std::function<AttendGradients()> start_attend_across_backward(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
    const Attended& attended, const std::string& group, Exchange exchange,
    std::optional<double> scale) {
  check(q, k, v, to_string(exchange));
  if (!is_empty(q)) return start_backward(grad_out, q, k, v, attended, group, exchange, scale);
  return [=] { return AttendGradients{at::empty_like(q), at::empty_like(k), at::empty_like(v)}; };
}

}  // namespace lighthouse::distributed
