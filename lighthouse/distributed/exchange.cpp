#include "lighthouse/distributed/exchange.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "lighthouse/distributed/chunks.h"
#include "lighthouse/distributed/messages.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/operators.h"

namespace lighthouse::distributed {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Processes = c10::intrusive_ptr<c10d::ProcessGroup>;

/// What the tensors of an exchange share. `tokens` are those that a rank has of all heads.
struct Sizes {
  int64_t ranks, batch, tokens, dim;
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
  const Sizes sizes{.ranks = ranks,
                    .batch = first.size(0),
                    .tokens = first.size(2) / (shared == 2 ? ranks : 1),
                    .dim = first.size(3)};
  TORCH_CHECK_VALUE(!zigzag || sizes.tokens % 2 == 0, "zigzag cuts a rank's tokens into two ",
                    "chunks, and there are ", sizes.tokens, " of them; they must be even");
  return sizes;
}

/// Where the rows of a rank stand in the sequence, in the order in which it has them.
std::vector<Tensor> places_of(int64_t rank, const Tensor& sequence, int64_t ranks, bool zigzag) {
  if (!zigzag) return {sequence.chunk(ranks)[rank]};
  const auto chunks = sequence.chunk(2 * ranks);
  std::vector<Tensor> places;
  for (const int64_t chunk : chunks_of(rank, ranks)) places.push_back(chunks[chunk]);
  return places;
}

constexpr const char* kWhat = "exchange heads for tokens";

/// What this rank has for another goes there, and what that one has in turn comes `to` its places.
void pass(Messages& messages, const std::vector<Tensor>& from, const std::vector<Tensor>& to,
          int64_t other, int64_t rank) {
  for (size_t i = 0; i < from.size(); ++i) {
    if (other == rank) {
      to[i].copy_(from[i]);
    } else {
      messages.send(from[i].contiguous(), other);
      messages.receive(to[i], other);
    }
  }
}

std::vector<Tensor> exchange_heads_kernel(at::TensorList tensors, std::string_view group,
                                          bool zigzag) {
  const Processes processes = c10d::resolve_process_group(std::string(group));
  const Sizes sizes = check_tensors(tensors, processes->getSize(), 1, zigzag);
  const int64_t ranks = sizes.ranks, rank = processes->getRank();
  Messages messages(processes, kWhat);
  std::vector<Tensor> results;
  for (const Tensor& tensor : tensors) {
    const Tensor heads = tensor.unflatten(1, {ranks, -1}).permute({1, 3, 0, 2, 4});
    // Tokens first: what arrives lies as a sequence.
    const Tensor sequence =
        at::empty({ranks * sizes.tokens, sizes.batch, heads.size(3), sizes.dim}, tensor.options());
    results.push_back(sequence.permute({1, 2, 0, 3}));
    if (tensor.is_meta() || tensor.numel() == 0) continue;
    for (int64_t other = 0; other < ranks; ++other) {
      const auto places = places_of(other, sequence, ranks, zigzag);
      const auto parts = heads[other].chunk(static_cast<int64_t>(places.size()));
      pass(messages, parts, places, other, rank);
    }
  }
  messages.start();
  messages.finish();
  return results;
}

std::vector<Tensor> exchange_tokens_kernel(at::TensorList tensors, std::string_view group,
                                           bool zigzag) {
  const Processes processes = c10d::resolve_process_group(std::string(group));
  const Sizes sizes = check_tensors(tensors, processes->getSize(), 2, zigzag);
  const int64_t ranks = sizes.ranks, rank = processes->getRank();
  Messages messages(processes, kWhat);
  std::vector<Tensor> results;
  std::vector<std::pair<Tensor, Tensor>> arrivals;  // of each rank's heads, and where they belong
  for (const Tensor& tensor : tensors) {
    const Tensor sequence = tensor.permute({2, 0, 1, 3});
    const Tensor all =
        at::empty({sizes.batch, sizes.tokens, ranks, tensor.size(1), sizes.dim}, tensor.options());
    results.push_back(all.flatten(2, 3).transpose(1, 2));
    if (tensor.is_meta() || tensor.numel() == 0) continue;
    for (int64_t other = 0; other < ranks; ++other) {
      const auto sent = places_of(other, sequence, ranks, zigzag);
      Tensor heads = all.select(2, other).transpose(0, 1);
      if (other != rank) {
        arrivals.emplace_back(at::empty(heads.sizes(), heads.options()), heads);
        heads = arrivals.back().first;
      }
      pass(messages, sent, heads.chunk(static_cast<int64_t>(sent.size())), other, rank);
    }
  }
  messages.start();
  messages.finish();
  for (const auto& [arrived, place] : arrivals) place.copy_(arrived);
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
