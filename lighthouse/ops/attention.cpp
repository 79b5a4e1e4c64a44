#include "lighthouse/ops/attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse {
namespace {

using at::Tensor;

void check_config(const Config& config) {
  try {
    config.validate();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

/// k or v with one head for each query head.
Tensor expand_heads(const Tensor& tensor, int64_t heads) {
  return tensor.repeat_interleave(heads / tensor.size(1), 1);
}

/// Two scores a token from two attentions over each of the interleaved sub-sequences
/// t = r mod dilation, in which a token attends to those before it: the norms of attn(q, k, v) and
/// of attn(k, q, v). The second has no grouped form, so key/value heads are expanded first.
TokenScores dilated_scores(const Tensor& q, const Tensor& k, const Tensor& v,
                           const Config& config) {
  const int64_t heads = q.size(1);
  const int64_t tokens = q.size(2);
  const int64_t groups = k.size(1);
  const auto empty = [&] {
    return at::empty({q.size(0), heads, tokens}, q.options().dtype(at::kFloat));
  };
  TokenScores scores{empty(), empty()};
  for (int64_t r = 0; r < std::min(config.dilation, tokens); ++r) {
    const auto every = [&](const Tensor& tensor) {
      return tensor.slice(2, r, tokens, config.dilation);
    };
    const Tensor sub_q = every(q);
    const Tensor sub_k = expand_heads(every(k), heads);
    const Tensor sub_v = expand_heads(every(v), heads);
    const auto norm = [](const Tensor& out) {
      return at::linalg_vector_norm(out, 2, at::IntArrayRef{-1}, false, at::kFloat);
    };
    every(scores.q).copy_(norm(dense_attention(sub_q, sub_k, sub_v, config.scale)));
    every(scores.k).copy_(norm(dense_attention(sub_k, sub_q, sub_v, config.scale)));
  }
  // Selection is per key/value head, so that its query heads agree.
  scores.k = scores.k.unflatten(1, {groups, heads / groups}).amax(2);
  return scores;
}

Selection select_by(const Tensor& scores_q, const Tensor& scores_k, const Config& config,
                    at::IntArrayRef geometry) {
  auto [rows, slots] = ops::select(scores_q, scores_k, to_string(config.selection), geometry);
  return {rows, slots};
}

/// Selects, given what the score stage wrote: its scores are those of the norm scorer.
Selection select_from(const Tensor& scores_q, const Tensor& scores_k, const Tensor& q,
                      const Tensor& k, const Tensor& v, const Config& config,
                      at::IntArrayRef geometry) {
  if (config.scorer == Scorer::kNorm) return select_by(scores_q, scores_k, config, geometry);
  const TokenScores tokens = dilated_scores(q, k, v, config);
  const auto [dilated_q, dilated_k] = ops::pool_scores(tokens.q, tokens.k, geometry);
  return select_by(dilated_q, dilated_k, config, geometry);
}

}  // namespace

Selection select(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
                 const std::optional<TokenScores>& scores) {
  check_config(config);
  const Shape shape = ops::check_qkv(q, k, v);
  const at::NoGradGuard no_grad;
  const int64_t tokens = q.size(2);
  const std::vector<int64_t> geometry = ops::geometry_list(tokens, config);
  if (scores) {
    ops::check_tensor(scores->q, "scores.q", {shape.batch, shape.heads, tokens}, at::kFloat,
                      q.device());
    ops::check_tensor(scores->k, "scores.k", {shape.batch, shape.groups, tokens}, at::kFloat,
                      q.device());
    const auto [scores_q, scores_k] = ops::pool_scores(scores->q, scores->k, geometry);
    return select_by(scores_q, scores_k, config, geometry);
  }
  const auto [scores_q, scores_k, roots] = ops::score(q, k, v, geometry);
  return select_from(scores_q, scores_k, q, k, v, config, geometry);
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
                 const std::optional<Selection>& given) {
  check_config(config);
  ops::check_qkv(q, k, v);
  const std::vector<int64_t> geometry = ops::geometry_list(q.size(2), config);
  Tensor roots;
  Selection selection;
  {
    const at::NoGradGuard no_grad;
    Tensor scores_q;
    Tensor scores_k;
    std::tie(scores_q, scores_k, roots) = ops::score(q, k, v, geometry);
    selection = given ? *given : select_from(scores_q, scores_k, q, k, v, config, geometry);
  }
  const auto& [rows, slots] = selection;
  const auto [gathered_q, gathered_k, gathered_v] =
      ops::gather(q, k, v, roots, rows, slots, geometry);
  const Tensor gathered_out = dense_attention(gathered_q, gathered_k, gathered_v, config.scale);
  return ops::scatter(gathered_out, rows, slots, geometry);
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                       std::optional<double> scale) {
  return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                          /*is_causal=*/true, scale,
                                          /*enable_gqa=*/q.size(1) != k.size(1));
}

int64_t gathered_rows(int64_t tokens, const Config& config) {
  return Geometry(tokens, config).rows;
}

}  // namespace lighthouse
