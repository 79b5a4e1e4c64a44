#include "lighthouse/distributed/attend_across.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/distributed/chunks.h"
#include "lighthouse/distributed/group.h"
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
using Work = c10::intrusive_ptr<c10d::Work>;

at::ScalarType sum_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

void wait(const Work& work) {
  if (work) work->wait();
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

  /// Tensors of all ranks, on their way.
  struct Gathering {
    Tensor own, all;
    Work work;
  };
  Gathering start_gather(const Tensor& own) const {
    Gathering gathering{own, at::empty({size_ * own.numel()}, own.options()), {}};
    Tensor flat = own.view({-1});
    gathering.work = with_peers(*processes_, kWhat,
                                [&] { return processes_->_allgather_base(gathering.all, flat); });
    return gathering;
  }
  /// (W, ...)
  Tensor finish(const Gathering& gathering) const {
    with_peers(*processes_, kWhat, [&] { wait(gathering.work); });
    std::vector<int64_t> shape = gathering.own.sizes().vec();
    shape.insert(shape.begin(), size_);
    return gathering.all.view(shape);
  }

  /// The sum over ranks of this one's part of (W, ...).
  Tensor sum_scatter(const Tensor& parts) const {
    Tensor from = parts.view({-1}), part = at::empty({parts.numel() / size_}, parts.options());
    with_peers(*processes_, kWhat, [&] { wait(processes_->_reduce_scatter_base(part, from)); });
    return part.view(parts.sizes().slice(1));
  }

  /// A tensor on its way to the next rank, and that of the rank before on its way here.
  struct Shift {
    Tensor sent, received;
    std::vector<Work> works;
  };
  /// @param tag tells shifts apart that are on their way at once
  Shift start_shift(const Tensor& sent, int tag) const {
    Shift shift{sent, at::empty_like(sent), {}};
    const int next = static_cast<int>((rank_ + 1) % size_), last = static_cast<int>(before(1));
    std::vector<Tensor> out{shift.sent}, in{shift.received};
    with_peers(*processes_, kWhat, [&] {
      const at::DeviceType device = sent.device().type();
      const bool together = processes_->getBackend(device)->supportsCoalescing();
      if (together) processes_->startCoalescing(device);
      for (const Work& work : {processes_->send(out, next, tag), processes_->recv(in, last, tag)}) {
        if (!together) shift.works.push_back(work);
      }
      if (together) shift.works.push_back(processes_->endCoalescing(device));
    });
    return shift;
  }
  Tensor finish(const Shift& shift) const {
    with_peers(*processes_, kWhat, [&] {
      for (const Work& work : shift.works) wait(work);
    });
    return shift.received;
  }

 private:
  static constexpr const char* kWhat = "exchange keys and values";
  c10::intrusive_ptr<c10d::ProcessGroup> processes_;
  int64_t rank_, size_;
};

/// Of (2, B, G, n, D), keys and values.
constexpr int64_t kRowDimension = 3;

/// Some rows of the sequence that one rank attends to: all of its own rows do, or its second half.
/// What is earlier than both of its chunks, both see; what lies between them, the second.
struct Block {
  bool all_queries;
  Tensor k, v;
};
/// Rows `begin` to `end` of (2, B, G, n, D).
Block block_of(const Tensor& keys_values, int64_t begin, int64_t end, bool all_queries) {
  const Tensor rows = keys_values.narrow(3, begin, end - begin);
  return {all_queries, rows.select(0, 0), rows.select(0, 1)};
}

/// Blocks of gathered rows: those before the first chunk, and those between the two.
struct Range {
  int64_t begin, end;
  bool all_queries;
};
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

/// Attention to one block after the other, as one.
class Merged {
 public:
  Merged(Tensor q, std::optional<double> scale, const Attended& first)
      : q_(std::move(q)),
        scale_(scale),
        out_(first.out.to(sum_type(q_.scalar_type()), false, /*copy=*/true)),
        logsumexp_(first.logsumexp.clone()) {}

  void add(const Block& block) {
    const int64_t begin = block.all_queries ? 0 : q_.size(2) / 2, count = q_.size(2) - begin;
    const Attended more =
        attend(q_.narrow(2, begin, count), block.k, block.v, /*causal=*/false, scale_);
    const Tensor out = out_.narrow(2, begin, count);
    const Tensor logsumexp = logsumexp_.narrow(2, begin, count);
    out.lerp_(more.out.to(out.scalar_type()),
              more.logsumexp.sub(logsumexp).sigmoid_().unsqueeze(-1));
    logsumexp.copy_(at::logaddexp(logsumexp, more.logsumexp));
  }

  /// In the type and with the layout of q.
  Tensors2 results() const { return {at::empty_like(q_).copy_(out_), logsumexp_.contiguous()}; }

 private:
  Tensor q_;
  std::optional<double> scale_;
  Tensor out_, logsumexp_;  // in the type of sums
};

/// Gradients of attention to one block after the other, given what it was merged into.
class MergedGradients {
 public:
  MergedGradients(Tensor grad_out, Tensor q, Attended merged, std::optional<double> scale)
      : grad_out_(std::move(grad_out)),
        q_(std::move(q)),
        merged_(std::move(merged)),
        scale_(scale),
        grad_q_(at::zeros(q_.sizes(), q_.options().dtype(sum_type(q_.scalar_type())))) {}

  /// Adds to that of q; (2, B, G, n, D), those of the block's keys and values.
  Tensor add(const Block& block, bool causal = false) {
    const int64_t begin = block.all_queries ? 0 : q_.size(2) / 2, count = q_.size(2) - begin;
    const auto rows = [&](const Tensor& t) { return t.narrow(2, begin, count); };
    const AttendGradients grads =
        attend_backward(rows(grad_out_), rows(q_), block.k, block.v,
                        {rows(merged_.out), rows(merged_.logsumexp)}, causal, scale_);
    rows(grad_q_).add_(grads.q);
    return at::stack({grads.k, grads.v}).to(grad_q_.scalar_type());
  }
  const Tensor& grad_q() const { return grad_q_; }

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

Tensors2 attend_across_kernel(const Tensor& q, const Tensor& k, const Tensor& v,
                              std::string_view group, std::string_view exchange,
                              std::optional<double> scale) {
  const Exchange how = check(q, k, v, exchange);
  if (q.is_meta() || q.numel() == 0) {
    const auto options = q.options().dtype(sum_type(q.scalar_type()));
    return {at::empty_like(q), at::empty(q.sizes().slice(0, 3), options)};
  }
  const Ranks ranks(group);
  const int64_t chunk = q.size(2) / 2;
  const Tensor own = at::stack({k, v});
  const auto local = [&] { return attend(q, k, v, /*causal=*/true, scale); };
  if (ranks.size() == 1) {
    const Attended attended = local();
    return {attended.out, attended.logsumexp};
  }
  if (how == Exchange::kGather) {
    const auto gathering = ranks.start_gather(own);
    Merged merged(q, scale, local());  // while the others' rows are on their way
    const Tensor all = in_sequence(ranks.finish(gathering), kRowDimension);
    for (const Range& r : gathered_ranges(ranks, chunk)) {
      merged.add(block_of(all, r.begin, r.end, r.all_queries));
    }
    return merged.results();
  }
  auto shift = ranks.start_shift(own, 0);
  Merged merged(q, scale, local());
  for (int64_t step = 1; step < ranks.size(); ++step) {
    const Tensor visiting = ranks.finish(shift);
    if (step + 1 < ranks.size()) shift = ranks.start_shift(visiting, 0);
    const Range r = ring_range(ranks, ranks.before(step), chunk);
    merged.add(block_of(visiting, r.begin, r.end, r.all_queries));
  }
  return merged.results();
}

/// The gradients of this rank's keys and values, (2, B, G, 2 s, D).
Tensor gather_backward(const Ranks& ranks, const Tensor& own, MergedGradients& grads) {
  const int64_t chunk = own.size(3) / 2;
  const auto gathering = ranks.start_gather(own);
  const Tensor grad_own = grads.add(block_of(own, 0, 2 * chunk, true), /*causal=*/true);
  const Tensor all = in_sequence(ranks.finish(gathering), kRowDimension);
  const Tensor grad_all = at::zeros(all.sizes(), grad_own.options());
  for (const Range& r : gathered_ranges(ranks, chunk)) {
    grad_all.narrow(3, r.begin, r.end - r.begin)
        .copy_(grads.add(block_of(all, r.begin, r.end, r.all_queries)));
  }
  return grad_own.add(ranks.sum_scatter(of_ranks(grad_all, ranks.size(), kRowDimension)));
}

Tensor ring_backward(const Ranks& ranks, const Tensor& own, MergedGradients& grads) {
  const int64_t chunk = own.size(3) / 2;
  auto rows = ranks.start_shift(own, 0);
  // The gradients of a rank's rows follow them round the ring, and go one step further: home.
  auto sums = ranks.start_shift(grads.add(block_of(own, 0, 2 * chunk, true), /*causal=*/true), 1);
  for (int64_t step = 1; step < ranks.size(); ++step) {
    const Tensor visiting = ranks.finish(rows);
    if (step + 1 < ranks.size()) rows = ranks.start_shift(visiting, 0);
    const Range r = ring_range(ranks, ranks.before(step), chunk);
    const Tensor grad = grads.add(block_of(visiting, r.begin, r.end, r.all_queries));
    const Tensor sum = ranks.finish(sums);
    sum.narrow(3, r.begin, r.end - r.begin).add_(grad);
    sums = ranks.start_shift(sum, 1);
  }
  return ranks.finish(sums);
}

Tensors3 attend_across_backward_kernel(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                       std::string_view group, std::string_view exchange,
                                       std::optional<double> scale) {
  const Exchange how = check(q, k, v, exchange);
  if (q.is_meta() || q.numel() == 0) {
    return {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  }
  const Ranks ranks(group);
  if (ranks.size() == 1) {
    const auto grads = attend_backward(grad_out, q, k, v, {out, logsumexp}, /*causal=*/true, scale);
    return {grads.q, grads.k, grads.v};
  }
  const Tensor own = at::stack({k, v});
  MergedGradients grads(grad_out, q, {out, logsumexp}, scale);
  const Tensor grad_own = how == Exchange::kGather ? gather_backward(ranks, own, grads)
                                                   : ring_backward(ranks, own, grads);
  return {at::empty_like(q).copy_(grads.grad_q()), at::empty_like(k).copy_(grad_own.select(0, 0)),
          at::empty_like(v).copy_(grad_own.select(0, 1))};
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
  const auto grads = ops::no_double_backward(
      "lighthouse::attend_across", {grad_out, q, k, v, out, logsumexp}, [&] {
        const auto [grad_q, grad_k, grad_v] =
            across_backward(grad_out, q, k, v, out, logsumexp, group, exchange, scale);
        return variable_list{grad_q, grad_k, grad_v};
      });
  return {grads[0], grads[1], grads[2]};
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

AttendGradients attend_across_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Attended& attended,
                                       const std::string& group, Exchange exchange,
                                       std::optional<double> scale) {
  const auto [grad_q, grad_k, grad_v] = across_backward(
      grad_out, q, k, v, attended.out, attended.logsumexp, group, to_string(exchange), scale);
  return {grad_q, grad_k, grad_v};
}

}  // namespace lighthouse::distributed
