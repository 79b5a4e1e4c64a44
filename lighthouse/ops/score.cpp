#include "lighthouse/kernels/score.h"

#include <ATen/ops/empty.h>

#include "lighthouse/ops/documents.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/tensor.h"

namespace lighthouse::ops {
namespace {

using at::Tensor;

/// Empty scores_q and scores_k: (B, G, E) float32.
std::tuple<Tensor, Tensor> empty_scores(const Geometry& g, const SymShape& sizes,
                                        const at::TensorOptions& options) {
  const auto empty = [&] {
    return at::empty_symint({sizes.batch, sizes.groups, g.coarse_entries()},
                            options.dtype(at::kFloat));
  };
  return {empty(), empty()};
}

std::tuple<Tensor, Tensor, Tensor> score_kernel(const Tensor& q_any, const Tensor& k_any,
                                                const Tensor& v_any, at::IntArrayRef geometry,
                                                const std::optional<Tensor>& document_roots) {
  const Geometry g = make_geometry(geometry);
  const SymShape sizes = check_qkv(q_any, k_any, v_any);
  check_tokens(q_any, "q", g);
  const Documents documents = documents_of(document_roots, g, sizes.batch, q_any.device());
  const Tensor q = with_contiguous_rows(q_any);
  const Tensor k = with_contiguous_rows(k_any);
  const Tensor v = with_contiguous_rows(v_any);

  Tensor scores_q, scores_k;  // clang 14 refuses structured bindings in lambdas
  std::tie(scores_q, scores_k) = empty_scores(g, sizes, q.options());
  const c10::SymInt all_columns = sizes.heads + 2 * sizes.groups;
  // The roots of a pyramid of one level are the tokens themselves.
  const int64_t roots_kept = g.levels > 1 ? g.roots : 0;
  const Tensor roots =
      at::empty_symint({sizes.batch, roots_kept, all_columns, sizes.dim}, q.options());
  if (!q.is_meta() && g.levels > 1) {
    const Shape shape = sizes.known();
    const int64_t columns = shape.heads + 2 * shape.groups;
    dispatch(q.scalar_type(), [&]<class T>() {
      const Score<T> args{g,
                          shape,
                          rows_of<T>(q),
                          rows_of<T>(k),
                          rows_of<T>(v),
                          scores_q.mutable_data_ptr<float>(),
                          scores_k.mutable_data_ptr<float>(),
                          static_cast<T*>(roots.mutable_data_ptr()),
                          documents};
      run(
          q.device(), shape.batch * g.roots, g.root_window() * columns * shape.dim,
          [&](int64_t begin, int64_t end) { cpu::score(args, begin, end); },
          [&](auto stream) {
            const Tensor workspace =
                at::empty({cuda::score_workspace_bytes(args)}, q.options().dtype(at::kByte));
            cuda::score(args, workspace.mutable_data_ptr(), stream);
          });
    });
  }
  return {scores_q, scores_k, roots};
}

/// The root means alone. They come out of the same pass, whose time is that of reading q, k and v.
Tensor roots_kernel(const Tensor& q, const Tensor& k, const Tensor& v, at::IntArrayRef geometry,
                    const std::optional<Tensor>& document_roots) {
  return std::get<2>(score_kernel(q, k, v, geometry, document_roots));
}

std::tuple<Tensor, Tensor> pool_scores_kernel(const Tensor& tokens_q, const Tensor& tokens_k,
                                              at::IntArrayRef geometry,
                                              const std::optional<Tensor>& document_roots) {
  const Geometry g = make_geometry(geometry);
  TORCH_CHECK_VALUE(tokens_q.dim() == 3, "scores.q has the shape ", tokens_q.sym_sizes(),
                    "; it must be (batch, heads, tokens)");
  TORCH_CHECK_VALUE(tokens_k.dim() == 3, "scores.k has the shape ", tokens_k.sym_sizes(),
                    "; it must be (batch, key/value heads, tokens)");
  const SymShape sizes{tokens_q.sym_size(0), tokens_q.sym_size(1), tokens_k.sym_size(1), 1};
  TORCH_CHECK_VALUE(sizes.groups >= 1 && sizes.heads >= 1 && sizes.heads % sizes.groups == 0,
                    "scores.k has ", sizes.groups, " heads; the ", sizes.heads,
                    " heads of scores.q must be a multiple of them");
  check_tensor(tokens_q, "scores.q", {sizes.batch, sizes.heads, g.tokens}, at::kFloat,
               tokens_q.device());
  check_tensor(tokens_k, "scores.k", {sizes.batch, sizes.groups, g.tokens}, at::kFloat,
               tokens_q.device());

  const Documents documents = documents_of(document_roots, g, sizes.batch, tokens_q.device());

  const auto [scores_q, scores_k] = empty_scores(g, sizes, tokens_q.options());
  if (!tokens_q.is_meta() && g.levels > 1) {
    const Shape shape = sizes.known();
    const Tensor contiguous_q = tokens_q.contiguous();
    const Tensor contiguous_k = tokens_k.contiguous();
    const PoolScores args{g,
                          shape,
                          contiguous_q.const_data_ptr<float>(),
                          contiguous_k.const_data_ptr<float>(),
                          scores_q.mutable_data_ptr<float>(),
                          scores_k.mutable_data_ptr<float>(),
                          documents};
    run(
        tokens_q.device(), shape.batch * g.roots, g.root_window() * (shape.heads + shape.groups),
        [&](int64_t begin, int64_t end) { cpu::pool_scores(args, begin, end); },
        [&](auto stream) { cuda::pool_scores(args, stream); });
  }
  return {scores_q, scores_k};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         "score(Tensor q, Tensor k, Tensor v, int[] geometry, Tensor? document_roots=None) -> "
         "(Tensor scores_q, Tensor scores_k, Tensor roots)",
         score_kernel);
  define(library,
         "roots(Tensor q, Tensor k, Tensor v, int[] geometry, Tensor? document_roots=None) -> "
         "Tensor roots",
         roots_kernel);
  define(library,
         "pool_scores(Tensor tokens_q, Tensor tokens_k, int[] geometry, "
         "Tensor? document_roots=None) -> "
         "(Tensor scores_q, Tensor scores_k)",
         pool_scores_kernel);
}

}  // namespace lighthouse::ops
