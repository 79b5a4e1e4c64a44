#include "lighthouse/ops/attention.h"

#include <ATen/core/grad_mode.h>

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

/// The scores of coarse entries from those of tokens.
std::tuple<Tensor, Tensor> pool(const TokenScores& scores, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Config& config) {
  const ops::SymShape sizes = ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  ops::check_tensor(scores.q, "scores.q", {sizes.batch, sizes.heads, tokens}, at::kFloat,
                    q.device());
  ops::check_tensor(scores.k, "scores.k", {sizes.batch, sizes.groups, tokens}, at::kFloat,
                    q.device());
  return ops::pool_scores(scores.q, scores.k, ops::geometry_list(tokens, config));
}

}  // namespace

Scored score(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
             const std::optional<TokenScores>& given) {
  check_config(config);
  ops::check_qkv(q, k, v);
  const at::NoGradGuard no_grad;
  const auto geometry = ops::geometry_list(ops::fixed_size(q, 2), config);
  if (!given && config.scorer == Scorer::kNorm) {  // norms and roots in one pass
    auto [scores_q, scores_k, roots] = ops::score(q, k, v, geometry);
    return {scores_q, scores_k, roots};
  }
  const auto [scores_q, scores_k] =
      pool(given ? *given : token_scores(q, k, v, config), q, k, v, config);
  return {scores_q, scores_k, ops::roots(q, k, v, geometry)};
}

Selection select(const Scored& scored, int64_t tokens, const Config& config) {
  auto [rows, slots] = ops::select(scored.scores_q, scored.scores_k, to_string(config.selection),
                                   ops::geometry_list(tokens, config));
  return {rows, slots};
}

Selection select(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                 const Config& config, const std::optional<TokenScores>& scores) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  const int64_t tokens = ops::fixed_size(q, 2);
  if (!scores) return select(score(q, k, v, config), tokens, config);
  check_config(config);
  const at::NoGradGuard no_grad;
  const auto [scores_q, scores_k] = pool(*scores, q, k, v, config);
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
                 const Config& config, const Given& given) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  check_config(config);
  ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  Selection selection;
  Tensor roots;
  if (const auto* chosen = std::get_if<Selection>(&given)) {
    selection = *chosen;
    roots = ops::roots(q, k, v, ops::geometry_list(tokens, config));
  } else {
    const auto* scores = std::get_if<TokenScores>(&given);
    const Scored scored = score(q, k, v, config, scores ? std::optional(*scores) : std::nullopt);
    selection = select(scored, tokens, config);
    roots = scored.roots;
  }
  if (config.local > 0) {
    return std::get<0>(ops::attend_both(q, k, v, roots, selection.rows, selection.slots,
                                        ops::geometry_list(tokens, config), config.local,
                                        config.local_shift, config.scale));
  }
  const Gathered gathered = gather(q, k, v, roots, selection, config);
  return scatter(attend(gathered, config).out, selection, tokens, config);
}

Tensor local_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config) {
  check_config(config);
  TORCH_CHECK_VALUE(config.local > 0, "local is 0; attention inside pieces needs at least 1 token");
  return std::get<0>(ops::attend_pieces(ops::autocast(q), ops::autocast(k), ops::autocast(v),
                                        config.local, config.local_shift, config.scale));
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       std::optional<double> scale) {
  return attend(q, k, v, /*causal=*/true, scale).out;
}

int64_t gathered_rows(int64_t tokens, const Config& config) {
  return Geometry(tokens, config).rows;
}

}  // namespace lighthouse
