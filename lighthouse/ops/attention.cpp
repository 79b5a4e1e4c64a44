#include "lighthouse/ops/attention.h"

#include <ATen/core/grad_mode.h>

#include "lighthouse/ops/attend.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/documents.h"
#include "lighthouse/ops/sequences.h"
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
                                const Tensor& v, const Config& config,
                                const PackedDocuments& documents) {
  const ops::SymShape sizes = ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  ops::check_tensor(scores.q, "scores.q", {sizes.batch, sizes.heads, tokens}, at::kFloat,
                    q.device());
  ops::check_tensor(scores.k, "scores.k", {sizes.batch, sizes.groups, tokens}, at::kFloat,
                    q.device());
  return ops::pool_scores(scores.q, scores.k, ops::geometry_list(tokens, config, documents.most()),
                          documents.roots);
}

/// The borders (B, M + 1) of documents, of rows as those of q.
Tensor borders_of(const Tensor& document_starts, const Tensor& q) {
  TORCH_CHECK_VALUE(document_starts.dim() == 2 && document_starts.sym_size(1) >= 1,
                    "document_starts has the shape ", document_starts.sym_sizes(),
                    "; it must be (batch, documents), with a document at least");
  ops::check_tensor(document_starts, "document_starts",
                    {q.sym_size(0), document_starts.sym_size(1)}, at::kInt, q.device());
  return ops::document_borders(document_starts, ops::fixed_size(q, 2));
}

}  // namespace

int64_t PackedDocuments::most() const { return borders ? ops::fixed_size(*borders, 1) - 1 : 1; }

PackedDocuments packed(const std::optional<Tensor>& document_starts, const Tensor& q,
                       const Config& config) {
  if (!document_starts) return {};
  TORCH_CHECK_VALUE(config.local > 0, "document_starts is given, but local is 0; documents need ",
                    "pieces of at least 1 token, since a document's first tokens may hear no more");
  PackedDocuments documents{borders_of(*document_starts, q), {}};
  documents.roots = ops::document_roots(
      *documents.borders, ops::geometry_list(ops::fixed_size(q, 2), config, documents.most()));
  return documents;
}

void check_scorer(const Config& config, bool has_documents) {
  TORCH_CHECK_VALUE(!has_documents || config.scorer == Scorer::kNorm, "scorer is ",
                    to_string(config.scorer),
                    ", whose scores see other documents; with document_starts it must be ",
                    to_string(Scorer::kNorm), ", or scores must be given");
}

Scored score(const Tensor& q, const Tensor& k, const Tensor& v, const Config& config,
             const std::optional<TokenScores>& given, const PackedDocuments& documents) {
  check_config(config);
  ops::check_qkv(q, k, v);
  const at::NoGradGuard no_grad;
  const auto geometry = ops::geometry_list(ops::fixed_size(q, 2), config, documents.most());
  if (!given && config.scorer == Scorer::kNorm) {  // norms and roots in one pass
    auto [scores_q, scores_k, roots] = ops::score(q, k, v, geometry, documents.roots);
    return {scores_q, scores_k, roots};
  }
  if (!given) check_scorer(config, documents.borders.has_value());
  const auto [scores_q, scores_k] =
      pool(given ? *given : token_scores(q, k, v, config), q, k, v, config, documents);
  return {scores_q, scores_k, ops::roots(q, k, v, geometry, documents.roots)};
}

Selection select(const Scored& scored, int64_t tokens, const Config& config, int64_t documents) {
  auto [rows, slots] = ops::select(scored.scores_q, scored.scores_k, to_string(config.selection),
                                   ops::geometry_list(tokens, config, documents));
  return {rows, slots};
}

Selection select(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                 const Config& config, const std::optional<TokenScores>& scores,
                 const std::optional<Tensor>& document_starts) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  check_config(config);
  ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  const PackedDocuments documents = packed(document_starts, q, config);
  if (!scores) {
    return select(score(q, k, v, config, {}, documents), tokens, config, documents.most());
  }
  const at::NoGradGuard no_grad;
  const auto [scores_q, scores_k] = pool(*scores, q, k, v, config, documents);
  return select({scores_q, scores_k, {}}, tokens, config, documents.most());
}

Gathered gather(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& roots,
                const Selection& selection, const Config& config,
                const PackedDocuments& documents) {
  auto [gathered_q, gathered_k, gathered_v] = ops::gather(
      q, k, v, roots, selection.rows, selection.slots,
      ops::geometry_list(ops::fixed_size(q, 2), config, documents.most()), documents.roots);
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
                 const Config& config, const Given& given,
                 const std::optional<Tensor>& document_starts) {
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  check_config(config);
  ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  const PackedDocuments documents = packed(document_starts, q, config);
  const auto geometry = ops::geometry_list(tokens, config, documents.most());
  Selection selection;
  Tensor roots;
  if (const auto* chosen = std::get_if<Selection>(&given)) {
    selection = *chosen;
    roots = ops::roots(q, k, v, geometry, documents.roots);
  } else {
    const auto* scores = std::get_if<TokenScores>(&given);
    const Scored scored =
        score(q, k, v, config, scores ? std::optional(*scores) : std::nullopt, documents);
    selection = select(scored, tokens, config, documents.most());
    roots = scored.roots;
  }
  if (config.local > 0) {
    return std::get<0>(ops::attend_both(q, k, v, roots, selection.rows, selection.slots, geometry,
                                        config.local, config.local_shift, config.scale,
                                        documents.borders, documents.roots));
  }
  const Gathered gathered = gather(q, k, v, roots, selection, config);
  return scatter(attend(gathered, config).out, selection, tokens, config);
}

Tensor local_attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                       const Config& config, const std::optional<Tensor>& document_starts) {
  check_config(config);
  TORCH_CHECK_VALUE(config.local > 0, "local is 0; attention inside pieces needs at least 1 token");
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  if (!document_starts) {
    return std::get<0>(ops::attend_pieces(q, k, v, config.local, config.local_shift, config.scale));
  }
  ops::check_qkv(q, k, v);
  const int64_t tokens = ops::fixed_size(q, 2);
  const Tensor borders =
      ops::piece_borders(borders_of(*document_starts, q), tokens, config.local, config.local_shift);
  const int64_t longest = std::min(config.local, tokens);
  const Tensor out = attend_sequences(q, k, v, borders.unsqueeze(1), longest, config.scale).out;
  return out.transpose(1, 2).contiguous().transpose(1, 2);
}

Tensor dense_attention(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                       std::optional<double> scale, const std::optional<Tensor>& document_starts) {
  if (!document_starts) return attend(q_any, k_any, v_any, /*causal=*/true, scale).out;
  const Tensor q = ops::autocast(q_any), k = ops::autocast(k_any), v = ops::autocast(v_any);
  ops::check_qkv(q, k, v);
  const Tensor borders = borders_of(*document_starts, q).unsqueeze(1);
  return attend_sequences(q, k, v, borders, ops::fixed_size(q, 2), scale).out;
}

int64_t gathered_rows(int64_t tokens, const Config& config, int64_t documents) {
  return Geometry(tokens, config, documents).rows;
}

}  // namespace lighthouse
