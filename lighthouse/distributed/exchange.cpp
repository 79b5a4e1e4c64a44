#include "lighthouse/distributed/exchange.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lighthouse/distributed/chunks.h"
#include "lighthouse/distributed/group.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/operators.h"

namespace lighthouse::distributed {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Processes = c10::intrusive_ptr<c10d::ProcessGroup>;

/// What the tensors of an exchange share. `heads` are those of all tensors that one rank has of
/// all tokens; `tokens` those that it has of all heads.
struct Sizes {
  int64_t ranks, batch, heads, tokens, dim;
};

/// @param shared the dimension that the ranks share: of the heads, or of the tokens
Sizes check_tensors(at::TensorList tensors, int64_t ranks, int64_t shared, bool zigzag) {
  TORCH_CHECK_VALUE(!tensors.empty(), "tensors is empty; it must hold a tensor at least");
  const Tensor& first = tensors[0];
  const char* names[] = {"batch", "heads", "tokens", "head_dim"};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    TORCH_CHECK_VALUE(tensor.dim() == 4, "tensors[", i, "] has the shape ", tensor.sizes(),
                      "; it must be (batch, heads, tokens, head_dim)");
    for (const int64_t d : {0, 2, 3}) {
      TORCH_CHECK_VALUE(tensor.size(d) == first.size(d), "tensors[", i, "] has the shape ",
                        tensor.sizes(), "; its ", names[d], " must be that of tensors[0], ",
                        first.size(d));
    }
    TORCH_CHECK_VALUE(
        tensor.scalar_type() == first.scalar_type() && tensor.device() == first.device(),
        "tensors[", i, "] is ", tensor.scalar_type(), " on ", tensor.device(),
        "; it must be as tensors[0], ", first.scalar_type(), " on ", first.device());
    TORCH_CHECK_VALUE(tensor.size(1) > 0, "tensors[", i, "] has no heads");
    TORCH_CHECK_VALUE(tensor.size(shared) % ranks == 0, "tensors[", i, "] has ",
                      tensor.size(shared), " ", names[shared], "; it must be a multiple of the ",
                      ranks, " ranks that exchange them");
  }
  int64_t heads = 0;
  for (const Tensor& tensor : tensors) heads += tensor.size(1) / (shared == 1 ? ranks : 1);
  const Sizes sizes{.ranks = ranks,
                    .batch = first.size(0),
                    .heads = heads,
                    .tokens = first.size(2) / (shared == 2 ? ranks : 1),
                    .dim = first.size(3)};
  TORCH_CHECK_VALUE(!zigzag || sizes.tokens % 2 == 0, "zigzag cuts a rank's tokens into two ",
                    "chunks, and there are ", sizes.tokens, " of them; they must be even");
  return sizes;
}

/// The part of rank r of `sent` to rank r, and what the others have for this one in turn.
Tensor all_to_all(const Tensor& sent, c10d::ProcessGroup& processes) {
  Tensor received = at::empty_like(sent), from = sent;
  std::vector<int64_t> equal_to, equal_from;
  with_peers(processes, "exchange heads for tokens", [&] {
    const auto work = processes.alltoall_base(received, from, equal_to, equal_from);
    if (work) work->wait();
  });
  return received;
}

std::vector<Tensor> exchange_heads_kernel(at::TensorList tensors, std::string_view group,
                                          bool zigzag) {
  const Processes processes = c10d::resolve_process_group(std::string(group));
  const Sizes sizes = check_tensors(tensors, processes->getSize(), 1, zigzag);
  const auto& [ranks, batch, heads, tokens, dim] = sizes;
  // Tokens first: what arrives lies as a sequence.
  Tensor rows = at::empty({ranks, tokens, batch, heads, dim}, tensors[0].options());
  int64_t head = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t part = tensor.size(1) / ranks;
    rows.narrow(3, head, part).copy_(tensor.unflatten(1, {ranks, part}).permute({1, 3, 0, 2, 4}));
    head += part;
  }
  const bool exchanges = !rows.is_meta() && rows.numel() > 0;
  if (exchanges) rows = all_to_all(rows, *processes);
  const Tensor sequence = exchanges && zigzag ? in_sequence(rows, 0) : rows.flatten(0, 1);
  std::vector<Tensor> results;
  head = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t part = tensor.size(1) / ranks;
    // An operator's results may not share memory.
    results.push_back(sequence.narrow(2, head, part).contiguous().permute({1, 2, 0, 3}));
    head += part;
  }
  return results;
}

std::vector<Tensor> exchange_tokens_kernel(at::TensorList tensors, std::string_view group,
                                           bool zigzag) {
  const Processes processes = c10d::resolve_process_group(std::string(group));
  const Sizes sizes = check_tensors(tensors, processes->getSize(), 2, zigzag);
  const auto& [ranks, batch, heads, tokens, dim] = sizes;
  Tensor rows = at::empty({ranks, tokens, batch, heads, dim}, tensors[0].options());
  int64_t head = 0;
  for (const Tensor& tensor : tensors) {
    rows.flatten(0, 1).narrow(2, head, tensor.size(1)).copy_(tensor.permute({2, 0, 1, 3}));
    head += tensor.size(1);
  }
  if (!rows.is_meta() && rows.numel() > 0) {
    if (zigzag) rows = of_ranks(rows.flatten(0, 1), ranks, 0);
    rows = all_to_all(rows, *processes);
  }
  std::vector<Tensor> results;
  head = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t part = tensor.size(1);
    const Tensor result = at::empty({batch, tokens, ranks, part, dim}, tensor.options());
    result.copy_(rows.narrow(3, head, part).permute({2, 1, 0, 3, 4}));
    results.push_back(result.flatten(2, 3).transpose(1, 2));
    head += part;
  }
  return results;
}

using Signature = std::vector<Tensor>(at::TensorList, std::string_view, bool);

constexpr const char* kHeads = "lighthouse::exchange_heads";
constexpr const char* kTokens = "lighthouse::exchange_tokens";

std::vector<Tensor> call(const char* name, at::TensorList tensors, std::string_view group,
                         bool zigzag) {
  return ops::handle<Signature>(name).call(tensors, group, zigzag);
}

/// Each of the two is the other's gradient.
class ExchangeFunction : public torch::autograd::Function<ExchangeFunction> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList tensors, const char* name,
                               const char* reverse, std::string_view group, bool zigzag) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->saved_data["reverse"] = std::string(reverse);
    context->saved_data["group"] = std::string(group);
    context->saved_data["zigzag"] = zigzag;
    return call(name, tensors, group, zigzag);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto& data = context->saved_data;
    variable_list results = call(data["reverse"].toStringRef().c_str(), grads,
                                 data["group"].toStringRef(), data["zigzag"].toBool());
    results.resize(results.size() + 4);  // none for the arguments that are no tensors
    return results;
  }
};

std::vector<Tensor> exchange_heads_autograd(at::TensorList tensors, std::string_view group,
                                            bool zigzag) {
  return ExchangeFunction::apply(tensors, kHeads, kTokens, group, zigzag);
}
std::vector<Tensor> exchange_tokens_autograd(at::TensorList tensors, std::string_view group,
                                             bool zigzag) {
  return ExchangeFunction::apply(tensors, kTokens, kHeads, group, zigzag);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  const std::string arguments = "(Tensor[] tensors, str group, bool zigzag=False) -> Tensor[]";
  ops::define(library, "exchange_heads" + arguments, exchange_heads_kernel,
              exchange_heads_autograd);
  ops::define(library, "exchange_tokens" + arguments, exchange_tokens_kernel,
              exchange_tokens_autograd);
}

std::vector<Tensor> exchange_heads(at::TensorList tensors, const std::string& group, bool zigzag) {
  return call(kHeads, tensors, group, zigzag);
}
std::vector<Tensor> exchange_tokens(at::TensorList tensors, const std::string& group, bool zigzag) {
  return call(kTokens, tensors, group, zigzag);
}

}  // namespace lighthouse::distributed
