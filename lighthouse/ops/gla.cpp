#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "lighthouse/core/check.h"
#include "lighthouse/ops/dispatcher.h"
#include "lighthouse/ops/operators.h"
#include "lighthouse/ops/scorers.h"
#include "lighthouse/ops/tensor.h"

/// The gla scorer. Chunks of tokens attend to themselves, weighted by the decay between two tokens;
/// what came before a chunk it reads from a state, the decayed sum of the outer products k v^T of
/// all chunks before. Every decay is the exponential of a number that is 0 or less.
namespace lighthouse {
namespace ops {
namespace {

constexpr int64_t kChunk = 128;     ///< tokens; about as many as a row has elements
constexpr double kLeastGate = -64;  ///< exp(-64) is far below a unit of any sum

/// The decays within and between the chunks of one head, C chunks of T tokens.
struct Decays {
  Tensor of_token;  ///< (B, C, T, 1): from before the chunk to the token
  Tensor to_end;    ///< (B, C, T, 1): from the token to the end of its chunk
  Tensor within;    ///< (B, C, T, T): from a key to a query, 0 where the key comes later
  Tensor between;  ///< (B, C, C): from the end of a chunk to before another, 0 unless that is later
};

/// exp(to_i - from_j), and 0 where j > i - `lag`.
Tensor decay(const Tensor& to, const Tensor& from, int64_t lag) {
  const Tensor difference = to.unsqueeze(-1) - from.unsqueeze(-2);
  const Tensor all = at::ones({to.size(-1), to.size(-1)}, to.options().dtype(at::kBool));
  return difference.masked_fill_(all.triu(1 - lag), -std::numeric_limits<double>::infinity())
      .exp_();
}

/// @param gate (B, C, T) float64
Decays decays(const Tensor& gate, at::ScalarType type) {
  // Sums over many tokens in float64; between tokens of a chunk the differences are small.
  const Tensor token = gate.cumsum(-1);
  const Tensor total = token.select(-1, -1);
  const Tensor end = total.cumsum(-1);
  const Tensor here = token.to(type);
  return {here.exp().unsqueeze(-1), (total.unsqueeze(-1) - token).to(type).exp_().unsqueeze(-1),
          decay(here, here, 0), decay(end - total, end, 1).to(type)};
}

/// The norms (B, N) of one head's outputs; q, k and v are (B, C, T, D).
Tensor output_norms(const Tensor& q, const Tensor& k, const Tensor& v, const Decays& decays) {
  const Tensor own = q.matmul(k.transpose(2, 3)).mul_(decays.within).matmul(v);
  const Tensor added = k.mul(decays.to_end).transpose(2, 3).matmul(v);
  const Tensor states = decays.between.matmul(added.flatten(2)).view(added.sizes());
  const Tensor out = q.mul(decays.of_token).matmul(states).add_(own);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  return at::linalg_vector_norm(out, 2, at::IntArrayRef{-1}).mul_(scale).flatten(1);
}

Tensors2 gla_scores_kernel(const Tensor& q, const Tensor& k, const Tensor& v,
                           const std::optional<Tensor>& gate, int64_t half_life) {
  const SymShape sizes = check_qkv(q, k, v);
  const int64_t tokens = fixed_size(q, 2);
  TORCH_CHECK_VALUE(half_life >= 1, "half_life is ", half_life, "; it must be at least 1");
  if (gate) {
    check_floating(*gate, "gate");
    check_tensor(*gate, "gate", {sizes.batch, sizes.heads, tokens}, gate->scalar_type(),
                 q.device());
    // Where looking costs next to nothing.
    TORCH_CHECK_VALUE(!gate->is_cpu() || gate->numel() == 0 || gate->max().item<double>() <= 0,
                      "gate holds ", gate->max().item<double>(), "; it must be 0 or less");
  }
  const auto options = q.options().dtype(at::kFloat);
  if (q.is_meta()) {
    return {at::empty_symint({sizes.batch, sizes.heads, tokens}, options),
            at::empty_symint({sizes.batch, sizes.groups, tokens}, options)};
  }
  const at::NoGradGuard no_grad;
  const Shape shape = sizes.known();
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t chunks = (tokens + kChunk - 1) / kChunk;
  // Zeros after the end: no token hears them.
  const auto chunked = [&](const Tensor& rows, at::ScalarType as) {
    std::vector<int64_t> padded = rows.sizes().vec();
    padded[1] = chunks * kChunk;
    Tensor whole = at::zeros(padded, rows.options().dtype(as));
    whole.narrow(1, 0, tokens).copy_(rows);
    return whole.unflatten(1, {chunks, kChunk});
  };
  // A head at a time: the chunks of one alone take the memory of several heads' rows.
  const Tensor constant =
      at::full({shape.batch, tokens}, -std::log(2.0) / static_cast<double>(half_life),
               options.dtype(at::kDouble));
  std::vector<Tensor> scores_q, scores_k;
  for (int64_t h = 0; h < shape.heads; ++h) {
    const Tensor own = gate ? gate->select(1, h).to(at::kDouble).clamp_min(kLeastGate) : constant;
    const Decays decay = decays(chunked(own, at::kDouble), type);
    const int64_t group = shape.group(h);
    const Tensor head_q = chunked(q.select(1, h), type), head_k = chunked(k.select(1, group), type);
    const Tensor head_v = chunked(v.select(1, group), type);
    scores_q.push_back(output_norms(head_q, head_k, head_v, decay));
    scores_k.push_back(output_norms(head_k, head_q, head_v, decay));
  }
  const auto stacked = [&](const std::vector<Tensor>& heads) {
    const Tensor scores = at::stack(heads, 1).narrow(2, 0, tokens).to(at::kFloat);
    return scores.reshape({-1}).view(scores.sizes());  // strides as at::empty has them
  };
  return {stacked(scores_q),
          stacked(scores_k).unflatten(1, {shape.groups, shape.heads_per_group()}).amax(2)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lighthouse, library) {
  define(library,
         message("gla_scores(Tensor q, Tensor k, Tensor v, Tensor? gate=None, int half_life=",
                 Config{}.half_life, ") -> (Tensor scores_q, Tensor scores_k)"),
         gla_scores_kernel);
}

}  // namespace ops

TokenScores gla_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const std::optional<at::Tensor>& gate, int64_t half_life) {
  using Signature = ops::Tensors2(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const std::optional<at::Tensor>&, int64_t);
  static const auto op = ops::handle<Signature>("lighthouse::gla_scores");
  const auto [scores_q, scores_k] = op.call(q, k, v, gate, half_life);
  return {scores_q, scores_k};
}

}  // namespace lighthouse
