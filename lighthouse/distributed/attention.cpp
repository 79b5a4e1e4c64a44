#include "lighthouse/distributed/attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>

#include <functional>
#include <limits>
#include <numeric>

#include "lighthouse/core/geometry.h"
#include "lighthouse/distributed/attend_both_across.h"
#include "lighthouse/distributed/exchange.h"
#include "lighthouse/distributed/world.h"
#include "lighthouse/ops/arguments.h"
#include "lighthouse/ops/attention.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/stages.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::distributed {

using at::Tensor;

Config chunk_config(const Config& config, int64_t ranks) {
  const int64_t chunks = 2 * ranks;
  check_argument(config.budget % chunks == 0, "budget is ", config.budget, "; by gather or ring ",
                 ranks, " ranks cut the sequence into ", chunks,
                 " chunks of equal budgets, so it must be a multiple of ", chunks);
  Config chunk = config;
  chunk.budget /= chunks;
  chunk.tile_budget = std::min(chunk.tile_budget, chunk.budget);
  while (chunk.budget % chunk.tile_budget != 0) --chunk.tile_budget;
  return chunk;
}

std::string dense_because(int64_t rank_tokens, const Config& config, const Context& context,
                          int64_t documents) {
  if (context.group.empty()) return lighthouse::dense_because(rank_tokens, config, documents);
  const int64_t ranks = World::named(context.group).size();
  return context.exchange == Exchange::kHeads
             ? lighthouse::dense_because(rank_tokens * ranks, config, documents)
             : lighthouse::dense_because(rank_tokens / 2, chunk_config(config, ranks));
}

namespace {

struct Qkv {
  Tensor q, k, v;
};

/// In the types of autocast, and checked.
Qkv inputs(const Tensor& q, const Tensor& k, const Tensor& v) {
  Qkv x{ops::autocast(q), ops::autocast(k), ops::autocast(v)};
  ops::check_qkv(x.q, x.k, x.v);
  return x;
}

void check_exchange(const Context& context, const std::optional<Tensor>& document_starts) {
  TORCH_CHECK_VALUE(!document_starts || context.exchange == Exchange::kHeads, "exchange is ",
                    to_string(context.exchange), "; with document_starts it must be ",
                    to_string(Exchange::kHeads));
}

// Heads for tokens.

/// Who has which heads.
struct HeadShares {
  int64_t ranks;
  int64_t groups;
  int64_t copies;  ///< of each key/value head, so that every rank gets as many
};

HeadShares head_shares(const Qkv& x, int64_t ranks) {
  const int64_t heads = x.q.size(1), groups = x.k.size(1);
  TORCH_CHECK_VALUE(heads % ranks == 0, "q has ", heads, " heads; to exchange heads they must be ",
                    "a multiple of the ", ranks, " ranks; gather and ring take any number");
  return {ranks, groups, ranks / std::gcd(ranks, groups)};
}

Tensor copied(const Tensor& rows, const HeadShares& shares) {
  return shares.copies == 1 ? rows : rows.repeat_interleave(shares.copies, 1);
}

/// Scores (B, heads of a rank, N) of all ranks: (B, heads, N).
Tensor all_heads(const Tensor& scores, const World& world) {
  const Tensor own = scores.contiguous();
  const Tensor all = at::empty({world.size() * own.numel()}, own.options());
  world.gather_parts(own.view({-1}), all);
  return all.view({world.size(), own.size(0), own.size(1), own.size(2)})
      .movedim(0, 1)
      .flatten(1, 2);
}

/// Where ranks have copies of a key/value head, each has some of its query heads, and the scores of
/// a group are the largest of all of them: those of this rank's heads, of one group each.
TokenScores scores_of_groups(const TokenScores& own, const HeadShares& shares, const World& world) {
  const at::NoGradGuard no_grad;
  constexpr double kLeast = -std::numeric_limits<double>::infinity();
  // As the score stage takes them: NaN is less than all.
  const auto group_maxima = [&](const Tensor& scores) {
    const Tensor all = at::nan_to_num(all_heads(scores, world), kLeast,
                                      std::numeric_limits<double>::infinity(), kLeast);
    return all.unflatten(1, {shares.groups, -1}).amax(2);
  };
  const int64_t own_groups = own.k.size(1);
  const auto own_of = [&](const Tensor& of_groups, int64_t heads) {
    return of_groups.repeat_interleave(shares.copies, 1)
        .narrow(1, world.rank() * own_groups, own_groups)
        .repeat_interleave(heads / own_groups, 1);
  };
  return {own_of(group_maxima(own.q), own.q.size(1)), own_of(group_maxima(own.k), own_groups)};
}

/// Attention of a rank's heads over the whole sequence, and the outputs of its tokens.
Tensor by_heads(const Qkv& x, const Context& context, const HeadShares& shares,
                const std::function<Tensor(const Qkv&)>& attend_heads) {
  const auto heads = exchange_heads({x.q, copied(x.k, shares), copied(x.v, shares)}, context.group,
                                    context.zigzag);
  const Tensor out = attend_heads({heads[0], heads[1], heads[2]});
  return exchange_tokens({out}, context.group, context.zigzag)[0];
}

// Chunks.

Qkv folded(const Qkv& x, int64_t ranks) {
  TORCH_CHECK_VALUE(x.q.size(2) % 2 == 0, "q has ", x.q.size(2),
                    " tokens; a rank has two chunks of equal length, so they must be even: the ",
                    "whole sequence must be a multiple of ", 2 * ranks);
  return {fold_chunks(x.q), fold_chunks(x.k), fold_chunks(x.v)};
}

Tensor by_chunks(const Qkv& tokens, const Config& whole, const Context& context, int64_t ranks,
                 const std::optional<TokenScores>& given) {
  const Config config = ops::as_value_error([&] { return chunk_config(whole, ranks); });
  const Qkv x = folded(tokens, ranks);
  const int64_t length = x.q.size(2);
  std::optional<TokenScores> scores;
  if (given) scores = {fold_chunks(given->q).contiguous(), fold_chunks(given->k).contiguous()};
  const Scored scored = score(x.q, x.k, x.v, config, scores);
  const Selection selection = select(scored, length, config);
  if (config.local > 0) {
    return unfold_chunks(attend_both_across(x.q, x.k, x.v, scored.roots, selection.rows,
                                            selection.slots, ops::geometry_list(length, config),
                                            config.local, config.local_shift, context.group,
                                            context.exchange, config.scale));
  }
  const Gathered rows = gather(x.q, x.k, x.v, scored.roots, selection, config);
  const Tensor out =
      attend_across(unfold_chunks(rows.q), unfold_chunks(rows.k), unfold_chunks(rows.v),
                    context.group, context.exchange, config.scale)
          .out;
  return unfold_chunks(scatter(fold_chunks(out), selection, length, config));
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
                 const Context& context, const std::optional<TokenScores>& scores,
                 const std::optional<Tensor>& document_starts) {
  if (context.group.empty()) {
    return lighthouse::attention(q, k, v, config, scores ? Given(*scores) : Given(),
                                 document_starts);
  }
  check_exchange(context, document_starts);
  ops::as_value_error([&] { config.validate(); });
  const Qkv x = inputs(q, k, v);
  if (scores) {
    ops::check_tensor(scores->q, "scores.q", x.q.sym_sizes().slice(0, 3), at::kFloat, x.q.device());
    ops::check_tensor(scores->k, "scores.k", x.k.sym_sizes().slice(0, 3), at::kFloat, x.q.device());
  }
  const World world = World::named(context.group);
  if (context.exchange != Exchange::kHeads) {
    return by_chunks(x, config, context, world.size(), scores);
  }
  const HeadShares shares = head_shares(x, world.size());
  return by_heads(x, context, shares, [&](const Qkv& heads) {
    Given given;
    if (scores) {
      const auto of_heads =
          exchange_heads({scores->q.unsqueeze(-1), copied(scores->k, shares).unsqueeze(-1)},
                         context.group, context.zigzag);
      given =
          TokenScores{of_heads[0].squeeze(-1).contiguous(), of_heads[1].squeeze(-1).contiguous()};
    }
    if (shares.copies > 1) {
      if (!scores) check_scorer(config, document_starts.has_value());
      const auto* own = std::get_if<TokenScores>(&given);
      given = scores_of_groups(
          own != nullptr ? *own : token_scores(heads.q, heads.k, heads.v, config), shares, world);
    }
    return lighthouse::attention(heads.q, heads.k, heads.v, config, given, document_starts);
  });
}

Tensor local_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
                       const Context& context, const std::optional<Tensor>& document_starts) {
  if (context.group.empty()) {
    return lighthouse::local_attention(q, k, v, config, document_starts);
  }
  check_exchange(context, document_starts);
  ops::as_value_error([&] { config.validate(); });
  const Qkv x = inputs(q, k, v);
  const int64_t ranks = World::named(context.group).size();
  if (context.exchange == Exchange::kHeads) {
    return by_heads(x, context, head_shares(x, ranks), [&](const Qkv& heads) {
      return lighthouse::local_attention(heads.q, heads.k, heads.v, config, document_starts);
    });
  }
  const Qkv chunks = folded(x, ranks);  // no piece is of two chunks: nothing is exchanged
  return unfold_chunks(lighthouse::local_attention(chunks.q, chunks.k, chunks.v, config));
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Context& context,
                       std::optional<double> scale, const std::optional<Tensor>& document_starts) {
  if (context.group.empty()) return lighthouse::dense_attention(q, k, v, scale, document_starts);
  check_exchange(context, document_starts);
  const Qkv x = inputs(q, k, v);
  if (context.exchange != Exchange::kHeads) {
    return attend_across(x.q, x.k, x.v, context.group, context.exchange, scale).out;
  }
  const HeadShares shares = head_shares(x, World::named(context.group).size());
  return by_heads(x, context, shares, [&](const Qkv& heads) {
    return lighthouse::dense_attention(heads.q, heads.k, heads.v, scale, document_starts);
  });
}

// The same as operators.

namespace {

using c10::OperatorHandle;
using torch::jit::Stack;

Context context_of(const ops::Arguments& given) {
  return {.group = given["group"].toStringRef(),
          .exchange = ops::as_value_error(
              [&] { return parse_word<Exchange>(given["exchange"].toStringRef(), "exchange"); }),
          .zigzag = given["zigzag"].toBool()};
}

void attention_of(const OperatorHandle& op, Stack* stack) {
  const ops::Arguments given(op, stack);
  std::optional<TokenScores> scores;
  if (const auto both = given.pair("scores_q", "scores_k")) scores = {both->first, both->second};
  torch::jit::push(
      *stack, attention(given.tensor("q"), given.tensor("k"), given.tensor("v"), given.config(),
                        context_of(given), scores, given.optional_tensor("document_starts")));
}
void local_attention_of(const OperatorHandle& op, Stack* stack) {
  const ops::Arguments given(op, stack);
  torch::jit::push(*stack, local_attention(given.tensor("q"), given.tensor("k"), given.tensor("v"),
                                           given.config(), context_of(given),
                                           given.optional_tensor("document_starts")));
}
void dense_attention_of(const OperatorHandle& op, Stack* stack) {
  const ops::Arguments given(op, stack);
  torch::jit::push(*stack, dense_attention(given.tensor("q"), given.tensor("k"), given.tensor("v"),
                                           context_of(given), given["scale"].toOptional<double>(),
                                           given.optional_tensor("document_starts")));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  const std::string tensors = "(Tensor q, Tensor k, Tensor v, ";
  const std::string context = "str group, str exchange=\"heads\", bool zigzag=False";
  const std::string settings = ops::settings_schema();
  const std::string documents = ", Tensor? document_starts=None) -> Tensor out";
  ops::define_whole<attention_of>(library,
                                  "context_attention" + tensors + settings + ", " + context +
                                      ", Tensor? scores_q=None, Tensor? scores_k=None" + documents);
  ops::define_whole<local_attention_of>(
      library, "context_local_attention" + tensors + settings + ", " + context + documents);
  ops::define_whole<dense_attention_of>(
      library,
      "context_dense_attention" + tensors + "*, float? scale=None, " + context + documents);
}

}  // namespace lighthouse::distributed
