#include "lighthouse/ops/attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/linalg_vector_norm.h>

#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/stages.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace {

using at::Tensor;

void check_config(const Config& config) {
  ops::as_value_error([&] { config.validate(); });
}

/// k or v with one head for each query head.
Tensor expand_heads(const Tensor& tensor, int64_t heads) {
  const int64_t own = ops::fixed_size(tensor, 1);
  return heads == own ? tensor : tensor.repeat_interleave(heads / own, 1);
}

/// Two scores a token from two attentions over each of the interleaved sub-sequences
/// t = r mod dilation, in which a token attends to those before it: the norms of attn(q, k, v) and
/// of attn(k, q, v). The second has no grouped form, so key/value heads are expanded first.
TokenScores dilated_scores(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Config& config) {
  const int64_t heads = ops::fixed_size(q, 1);
  const int64_t tokens = ops::fixed_size(q, 2);
  const int64_t groups = ops::fixed_size(k, 1);
  const int64_t dilation = std::min(config.dilation, tokens);
  const int64_t length = (tokens + dilation - 1) / dilation;
  // The sub-sequences side by side in the batch; zeros after the end, which no token attends to,
  // make them equally long.
  const auto interleaved = [&](const Tensor& tensor) {
    const int64_t missing = length * dilation - tokens;
    const Tensor whole = missing == 0 ? tensor : at::constant_pad_nd(tensor, {0, 0, 0, missing});
    return whole.unflatten(2, {length, dilation}).movedim(3, 1).flatten(0, 1);
  };
  const auto norms = [&](const Tensor& out) {
    // The norm of a float64 row is taken in float64, that of a 16-bit one in float32.
    const auto type = out.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return at::linalg_vector_norm(out, 2, at::IntArrayRef{-1}, false, type)
        .unflatten(0, {-1, dilation})
        .movedim(1, 3)
        .flatten(2, 3)
        .slice(2, 0, tokens)
        .to(at::kFloat);
  };
  const Tensor sub_q = interleaved(q);
  const Tensor sub_k = interleaved(expand_heads(k, heads));
  const Tensor sub_v = interleaved(expand_heads(v, heads));
  TokenScores scores{norms(dense_attention(sub_q, sub_k, sub_v, config.scale)),
                     norms(dense_attention(sub_k, sub_q, sub_v, config.scale))};
  // Selection is per key/value head: a group is as important as its most important query head.
  scores.k = scores.k.unflatten(1, {groups, heads / groups}).amax(2);
  return scores;
}

}  // namespace

Scored score(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config) {
  check_config(config);
  ops::check_qkv(q, k, v);
  const at::NoGradGuard no_grad;
  const auto geometry = ops::geometry_list(ops::fixed_size(q, 2), config);
  auto [scores_q, scores_k, roots] = ops::score(q, k, v, geometry);
  if (config.scorer == Scorer::kDilated) {
    const TokenScores tokens = dilated_scores(q, k, v, config);
    std::tie(scores_q, scores_k) = ops::pool_scores(tokens.q, tokens.k, geometry);
  }
  return {scores_q, scores_k, roots};
}

Selection select(const Scored& scored, int64_t tokens, const Config& config) {
  auto [rows, slots] = ops::select(scored.scores_q, scored.scores_k, to_string(config.selection),
                                   ops::geometry_list(tokens, config));
  return {rows, slots};
}

Selection select(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                 const Config& config, const std::optional<TokenScores>& scores) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  if (!scores) return select(score(q, k, v, config), ops::fixed_size(q, 2), config);
  check_config(config);
  const ops::SymShape sizes = ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  ops::check_tensor(scores->q, "scores.q", {sizes.batch, sizes.heads, tokens}, at::kFloat,
                    q.device());
  ops::check_tensor(scores->k, "scores.k", {sizes.batch, sizes.groups, tokens}, at::kFloat,
                    q.device());
  const at::NoGradGuard no_grad;
  const auto [scores_q, scores_k] =
      ops::pool_scores(scores->q, scores->k, ops::geometry_list(tokens, config));
  return select({scores_q, scores_k, {}}, tokens, config);
}

Gathered gather(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                const Selection& selection, const Config& config) {
  auto [gathered_q, gathered_k, gathered_v] =
      ops::gather(q, k, v, roots, selection.rows, selection.slots,
                  ops::geometry_list(ops::fixed_size(q, 2), config));
  return {gathered_q, gathered_k, gathered_v};
}

Attended attend(const Gathered& gathered, const Config& config) {
  return attend(gathered.q, gathered.k, gathered.v, /*causal=*/true, config.scale);
}

Tensor scatter(const Tensor& gathered_out, const Selection& selection, int64_t tokens,
               const Config& config) {
  return ops::scatter(gathered_out, selection.rows, selection.slots,
                      ops::geometry_list(tokens, config));
}

Tensor attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                 const Config& config, const std::optional<Selection>& given) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  Config scoring = config;
  if (given) scoring.scorer = Scorer::kNorm;  // only the roots are needed: the cheaper scorer
  const Scored scored = score(q, k, v, scoring);
  const int64_t tokens = ops::fixed_size(q, 2);
  const Selection selection = given ? *given : select(scored, tokens, config);
  const Gathered gathered = gather(q, k, v, scored.roots, selection, config);
  return scatter(attend(gathered, config).out, selection, tokens, config);
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       std::optional<double> scale) {
  return attend(q, k, v, /*causal=*/true, scale).out;
}

int64_t gathered_rows(int64_t tokens, const Config& config) {
  return Geometry(tokens, config).rows;
}

}  // namespace lighthouse
